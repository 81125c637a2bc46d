"""Write the tables of a dataset: items, users, and the values of categorical features."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import numpy as np
import polars as pl
import pyarrow as pa
import pyarrow.parquet as pq

from longplay.data_shards.preparation.item_columns import JoinedColumns
from longplay.data_shards.preparation.selection import Selection
from longplay.data_shards.storage.features import vocabulary_name
from longplay.data_shards.storage.manifest import ITEMS_NAME, USERS_NAME

_ROW_GROUP = 1 << 20
_JOINED_ROWS = 1 << 16


def write_items(
    folder: Path,
    selection: Selection,
    original_ids: np.ndarray | pl.Series,
    joined: JoinedColumns | None = None,
) -> None:
    """Write `items.parquet`, sorted by item id, with the columns of `joined` if it is given."""
    columns = {
        "item_id": np.arange(1, len(selection.item_counts) + 1, dtype=np.int64),
        "original_id": original_ids,
        "count": selection.item_counts,
    }
    if joined is None:
        _write_table(folder / ITEMS_NAME, columns)
        return
    schema, at = pa.schema([*_schema(columns), *joined.schema]), 0
    with pq.ParquetWriter((folder / ITEMS_NAME).absolute(), schema, compression="zstd") as writer:
        for batch in joined.batches(_JOINED_ROWS):
            own = _arrays(columns, at, at + batch.num_rows)
            at += batch.num_rows
            writer.write_table(pa.table([*own, *batch.columns], schema=schema))


def write_users(
    folder: Path, selection: Selection, assignment: list[np.ndarray], original_ids: np.ndarray | pl.Series
) -> None:
    """Write `users.parquet`. Its rows and `original_ids` are in the order of users in the shards."""
    users = np.concatenate(assignment)
    sizes = [len(shard) for shard in assignment]
    columns = {
        "user_index": np.arange(len(users), dtype=np.int64),
        "original_id": original_ids,
        "num_events": selection.lengths[users],
        "shard": np.repeat(np.arange(len(sizes), dtype=np.int64), sizes),
        "position": np.concatenate([np.arange(size, dtype=np.int64) for size in sizes]),
    }
    _write_table(folder / USERS_NAME, columns)


def write_vocabulary(folder: Path, name: str, values: np.ndarray | pl.Series, counts: np.ndarray) -> None:
    """Write the values of a categorical feature, in the order of their codes."""
    _write_table(folder / vocabulary_name(name), {"value": values, "count": counts})


def _write_table(path: Path, columns: Mapping[str, np.ndarray | pl.Series]) -> None:
    """Write columns of int64 or strings, a million rows at a time."""
    schema = _schema(columns)
    with pq.ParquetWriter(path.absolute(), schema, compression="zstd") as writer:
        for begin in range(0, len(next(iter(columns.values()))), _ROW_GROUP):
            writer.write_table(pa.table(_arrays(columns, begin, begin + _ROW_GROUP), schema=schema))


def _schema(columns: Mapping[str, np.ndarray | pl.Series]) -> pa.Schema:
    integers = {name: isinstance(values, np.ndarray) for name, values in columns.items()}
    return pa.schema([(name, pa.int64() if integer else pa.string()) for name, integer in integers.items()])


def _arrays(columns: Mapping[str, np.ndarray | pl.Series], begin: int, end: int) -> list[pa.Array]:
    """Return rows [begin, end) of each column."""
    parts = [values[begin:end] for values in columns.values()]
    return [
        pa.array(part) if isinstance(part, np.ndarray) else part.to_arrow().cast(pa.string())
        for part in parts
    ]
