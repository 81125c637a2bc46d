"""Parquet files with named columns."""

from __future__ import annotations

from argparse import ArgumentParser
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import polars as pl
import pyarrow as pa
import pyarrow.parquet as pq

from longplay.data_shards.errors import DataError
from longplay.data_shards.readers.fields import (
    ROLES,
    Columns,
    RowFormat,
    add_column_arguments,
    check_types,
    columns_of,
    find_column,
    parse_rows,
)
from longplay.data_shards.readers.registry import READERS, Reader
from longplay.data_shards.readers.sources import BLOCK_ROWS, Block, ParsedBlock
from longplay.data_shards.readers.text_blocks import file_identity


@dataclass(frozen=True, kw_only=True)
class ParquetSource:
    """Parquet files with named columns. Row numbers start at 1 in each file.

    Attributes:
        paths: the files, read in this order.
        columns: which columns hold the user, the item and the time.
    """

    paths: tuple[Path, ...]
    columns: Columns = field(default_factory=Columns)

    def describe(self) -> dict[str, Any]:
        paths = [str(path) for path in self.paths]
        return {"format": "parquet", "paths": paths, "options": dict(vars(self.columns))}

    def fingerprint(self) -> list[Any]:
        return [file_identity(path) for path in self.paths]

    def max_events(self) -> int:
        return self.total_weight()

    def total_weight(self) -> int:
        return sum(_num_rows(path) for path in self.paths)

    def blocks(self, block_bytes: int) -> Iterator[Block]:
        if self.total_weight() == 0:
            raise DataError(f"{', '.join(map(str, self.paths))}: no rows; pass a file with events")
        for path in self.paths:
            with _reading(path), pq.ParquetFile(path, pre_buffer=False) as file:
                columns = _find_columns(path, file, self.columns)
                for batch in file.iter_batches(BLOCK_ROWS, columns=list(dict.fromkeys(columns.values()))):
                    yield _ParquetBlock(path, batch, columns, self.columns)


@dataclass(frozen=True)
class _ParquetBlock:
    """Consecutive rows of a file."""

    path: Path
    batch: pa.RecordBatch
    found: dict[str, str]
    columns: Columns

    @property
    def part(self) -> str:
        return str(self.path)

    @property
    def weight(self) -> int:
        return self.batch.num_rows

    def parse(self) -> ParsedBlock:
        frame = pl.from_arrow(self.batch)
        assert isinstance(frame, pl.DataFrame)
        table = frame.select(pl.col(name).alias(role) for role, name in self.found.items())
        return parse_rows(table, RowFormat(columns=self.columns), f"{self.path}, row", 1)


def _find_columns(path: Path, file: pq.ParquetFile, columns: Columns) -> dict[str, str]:
    """Return role -> name of its column in the file.

    Raises:
        DataError: a column is missing or does not hold integers.
    """
    names, present = columns.names(), file.schema_arrow.names
    found = {role: present[find_column(names[role], present, f"--{role}", path)] for role in ROLES}
    empty = pl.from_arrow(file.schema_arrow.empty_table().select(list(dict.fromkeys(found.values()))))
    assert isinstance(empty, pl.DataFrame)
    check_types({role: empty.schema[name] for role, name in found.items()}, names, path)
    return found


def _num_rows(path: Path) -> int:
    with _reading(path):
        return pq.read_metadata(path).num_rows


@contextmanager
def _reading(path: Path) -> Iterator[None]:
    """Turn an error while reading a file into one line.

    Raises:
        DataError: the file cannot be read.
    """
    if path.is_dir():
        raise DataError(f"{path}: is a folder; pass the Parquet files in it")
    try:
        yield
    except FileNotFoundError:
        raise DataError(f"{path}: no such file; check the path") from None
    except (OSError, pa.ArrowException) as error:
        cause = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise DataError(
            f"{path}: cannot be read as Parquet ({cause}); check that the file is complete, or read "
            "text with `longplay prepare csv`"
        ) from error


def _add_arguments(parser: ArgumentParser) -> None:
    parser.add_argument("paths", type=Path, nargs="+", metavar="FILE")
    add_column_arguments(parser)


READERS.register(
    "parquet",
    Reader(
        help="Parquet files",
        add_arguments=_add_arguments,
        open=lambda args: ParquetSource(paths=tuple(args.paths), columns=columns_of(args)),
    ),
)
