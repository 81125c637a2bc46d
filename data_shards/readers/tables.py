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
from longplay.data_shards.readers.inputs import file_identity
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

    @property
    def path(self) -> Path: ...

    @property
    def header(self) -> Sequence[str]: ...

    @property
    def is_text(self) -> bool: ...

    @property
    def weight(self) -> int: ...

    @property
    def max_rows(self) -> int: ...

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

    def parse(self) -> ParsedBlock:
        return self.parser.parse(self.read())


@dataclass(frozen=True, kw_only=True)
class FileSource(ABC):
    """Files that are read in order. Each has the columns that are read, in any order.

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
        return f"users are {kinds.user}s, items are {kinds.item}s, {unit}"

    def max_events(self) -> int:
        return sum(file.max_rows for file in self._files)

    def total_weight(self) -> int:
        return sum(file.weight for file in self._files)

    def blocks(self, block_bytes: int) -> Iterator[Block]:
        for file in self._files:
            types = column_types(file.head())
            parser = RowParser(self.columns, self._kinds, file.header, types, file.path)
            for weight, read in file.blocks(block_bytes, parser.needed):
                yield TableBlock(str(file.path), weight, read, parser)

    @functools.cached_property
    def _files(self) -> tuple[TableFile, ...]:
        return tuple(self.open_file(path) for path in self.find_files())

    @functools.cached_property
    def _kinds(self) -> ColumnKinds:
        """How the columns of all files are read. Files without rows are ignored.

        A text column of ids that holds strings in one file is read as strings from all files. Text times that
        have a fraction in one file are read as numbers with a fraction from all.

        Raises:
            DataError: two files hold a column as different types.
        """
        files = [file for file in self._files if file.head().num_rows] or self._files
        first, *others = files
        kinds = ColumnKinds.find(self.columns, first.header, first.head(), first.path)
        for file in others:
            found = ColumnKinds.find(self.columns, file.header, file.head(), file.path)
            merged = _widest(kinds, found) if first.is_text else kinds
            if (not first.is_text and found != kinds) or merged is None:
                what = _difference(kinds, found)
                raise DataError(
                    f"{first.path} and {file.path}: {what}; convert one, or prepare them separately"
                )
            kinds = merged
        return kinds


def _widest(one: ColumnKinds, other: ColumnKinds) -> ColumnKinds | None:
    """Return the kinds that fit two text files; None if one has dates and the other has numbers."""
    if (one.time == "date") != (other.time == "date"):
        return None
    time = one if one.time == "decimal" else other
    features = {
        name: "string" if "string" in (kind, other.features[name]) else kind
        for name, kind in one.features.items()
    }
    return replace(
        one,
        user="string" if "string" in (one.user, other.user) else one.user,
        item="string" if "string" in (one.item, other.item) else one.item,
        time=time.time,
        time_unit=time.time_unit,
        features=features,
        types={name: _wider(kind, other.types.get(name, kind)) for name, kind in one.types.items()},
    )


def _wider(one: str, other: str) -> str:
    """Return the type that the values of two text columns fit. An empty column fits any type."""
    return (one or other) if not one or not other or one == other else "VARCHAR"


def _difference(one: ColumnKinds, other: ColumnKinds) -> str:
    """Return the difference between the kinds of two files, for the error message."""
    for name in ("user", "item", "time"):
        if getattr(one, name) != getattr(other, name):
            return f"the {name} is {getattr(one, name)} in the one and {getattr(other, name)} in the other"
    if one.time_unit != other.time_unit:
        units = [kinds.time_unit or "an unknown unit" for kinds in (one, other)]
        return f"times are in {units[0]} in the one and in {units[1]} in the other"
    return "a feature has different types"
