"""Parquet files. Each row is an event or, in `sequences`, a user with lists of events."""

# pyright: reportAttributeAccessIssue=false

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from longplay.data_shards.errors import DataError
from longplay.data_shards.readers.arguments import add_file_arguments, file_options
from longplay.data_shards.readers.bad_rows import LENGTHS_DIFFER
from longplay.data_shards.readers.columns import find_column
from longplay.data_shards.readers.inputs import find_files, reading
from longplay.data_shards.readers.registry import READERS, Reader
from longplay.data_shards.readers.row_parser import RawTable
from longplay.data_shards.readers.sources import BLOCK_ROWS
from longplay.data_shards.readers.tables import HEAD_ROWS, FileSource, TableFile

SUFFIXES = (".parquet", ".pq")
_LARGEST_BLOCK = 1.5
"""Row groups up to this multiple of a block are read as a whole, by any thread; larger ones in order."""


@dataclass(frozen=True, kw_only=True)
class ParquetSource(FileSource):
    """Parquet files. Row numbers start at 1 in each file.

    Attributes:
        lists: each row is a user. The item and, if read, the time and the features are lists of equal length.
    """

    lists: bool = False

    def find_files(self) -> tuple[Path, ...]:
        return find_files(self.paths, SUFFIXES)

    def open_file(self, path: Path) -> TableFile:
        return _ParquetFile(path, self)


class _ParquetFile:
    """A Parquet file."""

    is_text = False

    def __init__(self, path: Path, source: ParquetSource) -> None:
        self.path, self._required = path, set(source.columns.names().values())
        with _opened(path) as file:
            self._schema, self.weight = file.schema_arrow, file.metadata.num_rows
        self.header: Sequence[str] = self._schema.names
        self._item = find_column(source.columns.item, self.header, "--item", path) if source.lists else None
        if self._item is not None and not _is_list(self._schema, self._item):
            raise DataError(
                f"{path}: column {source.columns.item!r} does not hold lists; choose the column of a user's "
                "items with --item, or read events with `longplay prepare parquet`"
            )
        self.max_rows = self.weight if self._item is None else self._max_events()

    def _max_events(self) -> int:
        rows = self.head().num_rows
        return rows if self.weight <= HEAD_ROWS else int(1.5 * rows * self.weight / HEAD_ROWS) + 1

    def head(self) -> pa.Table:
        everything = range(len(self.header))
        with _opened(self.path) as file:
            batch = next(file.iter_batches(HEAD_ROWS, columns=self._names(everything)), None)
        found = self._schema.empty_table() if batch is None else pa.table(batch)
        needed = [
            at
            for at, name in enumerate(self.header)
            if name in found.column_names and (name in self._required or _is_valid(found[name]))
        ]
        table = self._unnested(found, needed).table
        return table.drop_columns([name for name in ("fault", "text") if name in table.column_names])

    def blocks(self, block_bytes: int, needed: Sequence[int]) -> Iterator[tuple[int, Callable[[], RawTable]]]:
        rows = BLOCK_ROWS
        if self._item is not None:
            rows = max(1, BLOCK_ROWS * self.weight // max(1, self.max_rows))
        with _opened(self.path) as file:
            for groups, num_rows in _row_groups(file.metadata, rows):
                if num_rows <= _LARGEST_BLOCK * rows:
                    yield num_rows, functools.partial(self._read, groups, needed)
                    continue
                for batch in file.iter_batches(rows, row_groups=groups, columns=self._names(needed)):

                    def read(batch: pa.RecordBatch = batch) -> RawTable:
                        return self._unnested(pa.table(batch), needed)

                    yield batch.num_rows, read

    def _read(self, groups: list[int], needed: Sequence[int]) -> RawTable:
        """Read row groups."""
        with _opened(self.path) as file:
            table = file.read_row_groups(groups, columns=self._names(needed), use_threads=False)
        return self._unnested(table.combine_chunks(), needed)

    def _names(self, needed: Sequence[int]) -> list[str]:
        """Return the columns to read. A name that occurs twice in the file is left out."""
        names = [self.header[at] for at in needed]
        return [name for name in names if names.count(name) == 1]

    def _unnested(self, table: pa.Table, needed: Sequence[int]) -> RawTable:
        """Return a row for each event, with the column names of `RawTable`.

        Raises:
            DataError: a text is not UTF-8.
        """
        names = {at: self.header[at] for at in needed if self.header[at] in table.column_names}
        for name in names.values():
            if not _is_valid(table[name]):
                raise DataError(
                    f"{self.path}: column {name!r} holds text that is not UTF-8; write the file with UTF-8"
                )
        found = pa.table({f"c{at}": table[name] for at, name in names.items()})
        where, numbers = f"{self.path}, row", np.arange(1, table.num_rows + 1)
        if self._item is None:
            return RawTable(found, where, numbers)
        found, of_row = _unnest(found, f"c{self._item}")
        return RawTable(found, where, numbers[of_row])


def _row_groups(metadata: pq.FileMetaData, rows: int) -> Iterator[tuple[list[int], int]]:
    """Yield consecutive row groups with at most `rows` rows together, or one larger one, and their rows."""
    groups, num_rows = [], 0
    for group in range(metadata.num_row_groups):
        of_group = metadata.row_group(group).num_rows
        if groups and num_rows + of_group > rows:
            yield groups, num_rows
            groups, num_rows = [], 0
        groups.append(group)
        num_rows += of_group
    if num_rows:
        yield groups, num_rows


def _unnest(table: pa.Table, item: str) -> tuple[pa.Table, np.ndarray]:
    """Return a row for each element of the lists, and the (events,) int64 index of the row that holds it.

    A row whose lists have different lengths gives one unusable event for each of its items, at least one.
    """
    table = table.combine_chunks()
    lengths = pc.fill_null(pc.list_value_length(table[item]), 0)
    lists = [name for name in table.column_names if _is_list(table.schema, table.column_names.index(name))]
    same = np.ones(table.num_rows, bool)
    for name in lists:
        same &= pc.equal(pc.fill_null(pc.list_value_length(table[name]), 0), lengths).to_numpy()
    rows, counts = np.arange(table.num_rows), lengths.to_numpy()
    of_good = np.repeat(rows[same], counts[same])
    of_bad = np.repeat(rows[~same], np.maximum(counts[~same], 1))
    good = table.filter(same)
    events = {
        name: pc.list_flatten(good[name]) if name in lists else table[name].take(of_good)
        for name in table.column_names
    }
    found = pa.table(events)
    if len(of_bad):
        lost = pa.table(
            {
                "fault": pa.array([LENGTHS_DIFFER] * len(of_bad)),
                "text": pa.array(["lists of different lengths"] * len(of_bad)),
            }
        )
        found = pa.concat_tables([found, lost], promote_options="default")
    return found, np.concatenate([of_good, of_bad])


def _is_valid(column: pa.ChunkedArray) -> bool:
    """Return whether all texts are UTF-8. Other text would stop DuckDB."""
    try:
        column.validate(full=True)
    except pa.ArrowInvalid:
        return False
    return True


def _is_list(schema: pa.Schema, at: int) -> bool:
    kind = schema.field(at).type
    return pa.types.is_list(kind) or pa.types.is_large_list(kind) or pa.types.is_fixed_size_list(kind)


@contextmanager
def _opened(path: Path) -> Iterator[pq.ParquetFile]:
    """Open a file, and turn an error while reading it into a `DataError` of one line.

    Raises:
        DataError: the file cannot be read.
    """
    remedy = "check that the file is complete, or read text with `longplay prepare csv`"
    with reading(path, "Parquet", remedy), pq.ParquetFile(path.absolute(), pre_buffer=False) as file:
        yield file


READERS.register(
    "parquet",
    Reader(
        help="Parquet files with an event in each row",
        add_arguments=add_file_arguments,
        open=lambda args: ParquetSource(format="parquet", **file_options(args)),
    ),
)
READERS.register(
    "sequences",
    Reader(
        help="Parquet files with a user and lists of items and times in each row, as Spark groups them",
        add_arguments=add_file_arguments,
        open=lambda args: ParquetSource(format="sequences", lists=True, **file_options(args)),
    ),
)
