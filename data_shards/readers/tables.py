"""Base of the sources that read tables from files: one schema, and blocks that are parsed independently."""

from __future__ import annotations

import functools
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Protocol

import pyarrow as pa

from longplay.data_shards.errors import DataError
from longplay.data_shards.readers.columns import Columns
from longplay.data_shards.readers.database import column_types
from longplay.data_shards.readers.inputs import file_identity, folder_columns
from longplay.data_shards.readers.kinds import ColumnKinds
from longplay.data_shards.readers.row_parser import RawTable, RowParser
from longplay.data_shards.readers.sources import Block, ParsedBlock
from longplay.data_shards.storage.manifest import SourceInfo, TimeUnit

HEAD_ROWS = 20_000
"""Number of first rows from which the types of text columns are detected."""


class TableFile(Protocol):
    """A file that holds a table.

    Attributes:
        path: the file.
        header: names of all columns.
        is_text: all columns are text, and their types are detected.
        weight: size of the file in the unit of its blocks' weights.
        max_rows: upper estimate of the number of rows.
    """

    path: Path
    header: Sequence[str]
    is_text: bool
    weight: int
    max_rows: int

    def head(self) -> pa.Table:
        """Return at most `HEAD_ROWS` first rows, with the columns `c0`, `c1`, ... of `RawTable`."""
        ...

    def blocks(self, block_bytes: int, needed: Sequence[int]) -> Iterator[tuple[int, Callable[[], RawTable]]]:
        """Yield the weight of each block and a function that reads it, which any thread may call.

        Args:
            block_bytes: approximate size of a block of text.
            needed: indices of the columns to read.
        """
        ...


@dataclass(frozen=True)
class TableBlock:
    """Consecutive rows of a file."""

    part: str
    weight: int
    read: Callable[[], RawTable]
    parser: RowParser
    folders: FolderColumns

    def parse(self) -> ParsedBlock:
        raw = self.read()
        return self.parser.parse(replace(raw, table=self.folders.append_to(raw.table)))


class FolderColumns:
    """The columns that a file has from its folders, such as `year=2024`. They follow its own columns.

    Attributes:
        header: names of all columns.
    """

    def __init__(self, file: TableFile) -> None:
        columns = folder_columns(file.path)
        self._own = len(file.header)
        self._values = [value for name, value in columns.items() if name not in file.header]
        self.header = [*file.header, *(name for name in columns if name not in file.header)]

    def append_to(self, table: pa.Table) -> pa.Table:
        """Return a table of the file with these columns too."""
        for at, value in enumerate(self._values, self._own):
            table = table.append_column(f"c{at}", pa.repeat(pa.scalar(value, pa.string()), len(table)))
        return table


@dataclass(frozen=True, kw_only=True)
class FileSource(ABC):
    """Files that are read in order. Each has the columns that are read, in any order.

    Folders called `name=value` are columns.

    Attributes:
        format: name of the format, for the manifest.
        paths: the files, folders and patterns that the user typed.
        columns: which columns are read, and how.
        origins: downloaded copy -> its URL, which the manifest names.
        options: command-line options that select this source, for the manifest.
    """

    format: str
    paths: tuple[Path, ...]
    columns: Columns = field(default_factory=Columns)
    options: dict[str, Any] = field(default_factory=dict)
    origins: Mapping[Path, str] = field(default_factory=dict)

    @abstractmethod
    def find_files(self) -> tuple[Path, ...]:
        """Return the files in the order in which they are read.

        Raises:
            DataError: a file is missing.
        """

    @abstractmethod
    def open_file(self, path: Path) -> TableFile:
        """Open one of the files.

        Raises:
            DataError: the file cannot be read.
        """

    def describe(self) -> SourceInfo:
        paths = [self.origins.get(path, str(path)) for path in self.paths]
        given = {name: value for name, value in self.options.items() if value is not None}
        return {"format": self.format, "paths": paths, "options": given}

    def fingerprint(self) -> list[Any]:
        return [file_identity(path) for path in self.find_files()]

    def time_unit(self) -> TimeUnit | None:
        return self._kinds.time_unit

    def features(self) -> tuple[tuple[str, str], ...]:
        return tuple((feature.name, feature.kind) for feature in self.columns.features)

    def summary(self) -> str:
        kinds = self._kinds
        times = {"index": "the order of the rows as time", None: "times as they are, of unknown unit"}
        unit = times.get(kinds.time_unit, f"times in {kinds.time_unit}")
        return f"users are {kinds.of['user']}s, items are {kinds.of['item']}s, {unit}"

    def max_events(self) -> int:
        return sum(file.max_rows for file in self._files)

    def total_weight(self) -> int:
        return sum(file.weight for file in self._files)

    def blocks(self, block_bytes: int) -> Iterator[Block]:
        for file in self._files:
            folders = FolderColumns(file)
            types = column_types(folders.append_to(file.head()))
            parser = RowParser(self.columns, self._kinds, folders.header, types, file.path)
            needed = [at for at in parser.needed if at < len(file.header)]
            for weight, read in file.blocks(block_bytes, needed):
                yield TableBlock(str(file.path), weight, read, parser, folders)

    @functools.cached_property
    def _files(self) -> tuple[TableFile, ...]:
        return tuple(self.open_file(path) for path in self.find_files())

    @functools.cached_property
    def _kinds(self) -> ColumnKinds:
        """How the columns of all files are read. Files without rows, and columns without values, are ignored.

        Raises:
            DataError: two files hold a column as different types.
        """
        kinds, first, has_rows = None, self._files[0], False
        for file in self._files:
            folders, head = FolderColumns(file), file.head()
            if kinds is not None and not head.num_rows:
                continue
            found = ColumnKinds.find(self.columns, folders.header, folders.append_to(head), file.path)
            if kinds is None or not has_rows:
                kinds, first, has_rows = found, file, head.num_rows > 0
            elif (merged := kinds.merged(found, is_text=first.is_text)) is not None:
                kinds = merged
            else:
                raise DataError(
                    f"{first.path} and {file.path}: {kinds.difference(found)}; convert one, or prepare them "
                    "separately"
                )
        assert kinds is not None, "a source has files"
        return kinds.completed()
