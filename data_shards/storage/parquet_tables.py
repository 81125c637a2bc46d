"""Read one Parquet file with Polars, which would expand patterns and `~` in its path."""

import io
from collections.abc import Sequence
from pathlib import Path

import polars as pl


def read_table(file: Path | io.BytesIO, columns: Sequence[str]) -> pl.DataFrame:
    """Read columns of a file, of which `file` is the exact path or the content.

    Raises:
        OSError, PolarsError: the file cannot be read, or lacks a column.
    """
    return pl.read_parquet(_exact(file), columns=list(columns), glob=False)


def table_types(file: Path | io.BytesIO) -> dict[str, pl.DataType]:
    """Return the type of each column of a file, as `read_table` reads it.

    Raises:
        OSError, PolarsError: the file cannot be read.
    """
    return dict(pl.read_parquet(_exact(file), n_rows=0, glob=False).schema)


def _exact(file: Path | io.BytesIO) -> Path | io.BytesIO:
    return file.absolute() if isinstance(file, Path) else file
