"""Read item categories and item vectors from a dataset."""

from collections.abc import Iterable

import numpy as np
import polars as pl
import torch
from torch import Tensor

from longplay.data_shards.storage.dataset import Dataset
from longplay.launch.settings.errors import ConfigError
from longplay.models.inputs.items import ItemInputs

_ROWS_AT_ONCE = 1 << 18
_NUMBERS = (pl.Float32, pl.Float64, pl.Int8, pl.Int16, pl.Int32, pl.Int64, pl.UInt8, pl.UInt16, pl.UInt32)


def load_item_inputs(dataset: Dataset, categories: Iterable[str], vectors: str | None) -> ItemInputs:
    """Read columns of items.parquet.

    Raises:
        ConfigError: items.parquet has no such column, or it has values of another kind.
        DataError: items.parquet cannot be read.
    """
    types = dataset.item_columns.types

    def column(setting: str, name: str) -> pl.Series:
        if name not in types:
            known = ", ".join(types) or "none"
            raise ConfigError(
                f"inputs.{setting}: {dataset.path} has no item column {name!r}; it has: {known}"
            )
        return dataset.item_columns.column(name)

    return ItemInputs(
        {name: _codes(column("item_categories", name)) for name in categories},
        None if vectors is None else _vectors(column("item_vectors", vectors)),
    )


def _codes(column: pl.Series) -> Tensor:
    """Return (items + 1,) int32 codes: 1.. by falling number of items, ties by value; 0 = null."""
    if column.dtype != pl.String and not column.dtype.is_integer():
        raise ConfigError(
            f"inputs.item_categories {column.name}: is {column.dtype}; give columns of text or integers"
        )
    values = column.drop_nulls().value_counts().sort(["count", column.name], descending=[True, False])
    places = values.select(column.name).with_row_index("code", offset=1)
    codes = column.to_frame().join(places, on=column.name, how="left", maintain_order="left")["code"]
    return torch.from_numpy(np.concatenate([[0], codes.fill_null(0).to_numpy()]).astype(np.int32))


def _vectors(column: pl.Series) -> Tensor:
    """Return (items + 1, V) float32 vectors of a mean squared length of 1; 0 = null."""
    place, dtype = f"inputs.item_vectors {column.name}", column.dtype
    if not isinstance(dtype, pl.List | pl.Array) or dtype.inner not in _NUMBERS:
        raise ConfigError(f"{place}: is {dtype}; give a column of lists of numbers")
    lengths = (
        (column.list if isinstance(dtype, pl.List) else column.arr).len().drop_nulls().unique().to_list()
    )
    if len(lengths) != 1 or lengths == [0]:
        raise ConfigError(
            f"{place}: has vectors of lengths {sorted(lengths)[:3]}; give vectors of one length"
        )
    (width,) = lengths
    table = np.zeros((len(column) + 1, width), np.float32)
    square_length, num_known = 0.0, 0
    for first in range(0, len(column), _ROWS_AT_ONCE):
        part = column.slice(first, _ROWS_AT_ONCE).cast(pl.List(pl.Float32))
        known, values = part.is_not_null().to_numpy(), part.drop_nulls().explode()
        if values.null_count() or not values.is_finite().all():
            raise ConfigError(f"{place}: a vector contains a null, NaN or infinity")
        rows = table[1 + first : 1 + first + len(part)]
        rows[known] = values.to_numpy().reshape(-1, width)
        square_length += float(np.einsum("ij,ij->", rows, rows, dtype=np.float64))
        num_known += int(known.sum())
    if square_length:
        table *= np.float32((square_length / num_known) ** -0.5)
    return torch.from_numpy(table)
