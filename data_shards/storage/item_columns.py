"""The columns of `items.parquet` beyond ids and counts: titles, categories, vectors."""

from __future__ import annotations

import functools
import io
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import polars as pl

from longplay.data_shards.errors import DataError
from longplay.data_shards.storage.parquet_tables import read_table, table_types

ITEM_COLUMNS = ("item_id", "original_id", "count")
"""The columns that every `items.parquet` has."""
TITLE = "title"


class ItemColumns:
    """The additional columns of the items, in the order of item ids, read when they are needed.

    Args:
        open_table: returns `items.parquet` as a path, or as its content.
        name: the file, for messages.
    """

    def __init__(self, open_table: Callable[[], Path | io.BytesIO], name: object) -> None:
        self._open, self._name = open_table, name

    @functools.cached_property
    def types(self) -> dict[str, pl.DataType]:
        """Name -> type of each additional column.

        Raises:
            DataError: the table cannot be read.
        """
        with self._reading():
            types = table_types(self._open())
        return {name: dtype for name, dtype in types.items() if name not in ITEM_COLUMNS}

    def column(self, name: str) -> pl.Series:
        """Return one column, (items,).

        Raises:
            DataError: the table cannot be read.
        """
        with self._reading():
            return read_table(self._open(), [name])[name]

    @functools.cached_property
    def _titles(self) -> pl.Series:
        return self.column(TITLE).cast(pl.String)

    def titles(self, item_ids: np.ndarray) -> list[str | None] | None:
        """Return the titles of (N,) item ids, None where an item has none; None if the items have no titles.

        The first call reads all titles into memory.
        """
        if TITLE not in self.types or self.types[TITLE].is_nested():
            return None
        rows = pl.Series(item_ids, dtype=pl.Int64) - 1
        return self._titles.gather(rows.set(rows < 0, None)).to_list()

    @contextmanager
    def _reading(self) -> Iterator[None]:
        try:
            yield
        except (OSError, pl.exceptions.PolarsError) as error:
            cause = str(error).partition("\n")[0]
            raise DataError(f"{self._name}: cannot be read ({cause}); restore the file") from error
