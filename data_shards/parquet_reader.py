"""Parquet files with named columns."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import polars as pl

from longplay.data_shards.bad_rows import BadRows
from longplay.data_shards.errors import DataError
from longplay.data_shards.fields import ROLES, Columns, check_types, find_column, usable_events
from longplay.data_shards.sources import BLOCK_ROWS, Progress, RawEvents, no_progress


@dataclass(frozen=True, kw_only=True)
class ParquetSource:
    """Parquet files, read one after the other; rows are numbered from 1 in each."""

    paths: tuple[Path, ...]
    columns: Columns = field(default_factory=Columns)

    def describe(self) -> dict[str, Any]:
        paths = [str(path) for path in self.paths]
        return {"format": "parquet", "paths": paths, "options": dict(vars(self.columns))}

    def read(self, progress: Progress = no_progress) -> RawEvents:
        blocks, rows_in, bad_rows = [], 0, BadRows()
        for path in self.paths:
            raw = _read_columns(path, self.columns)
            done = 0
            for block in raw.iter_slices(BLOCK_ROWS):
                blocks.append(usable_events(block, self.columns, f"{path}, row", bad_rows))
                done += block.height
                progress(f"reading {path.name}", done, raw.height)
            rows_in += raw.height
        if rows_in == 0:
            raise DataError(f"{', '.join(map(str, self.paths))}: no rows; pass a file that holds events")
        return RawEvents(pl.concat(blocks), rows_in, bad_rows)


def _read_columns(path: Path, columns: Columns) -> pl.DataFrame:
    """The three wanted columns of one file, as `user`, `item`, `time`, with `number`, `reason` and `text`."""
    if path.is_dir():
        raise DataError(f"{path}: a folder, not a file; name the Parquet files in it")
    names = columns.names()
    try:
        schema = pl.read_parquet_schema(path)
        present = list(schema)
        found = {role: present[find_column(names[role], present, role, path)] for role in ROLES}
        check_types({role: schema[name] for role, name in found.items()}, names, path)
        frame = pl.scan_parquet(path, glob=False).select(
            pl.int_range(1, pl.len() + 1, dtype=pl.Int64).alias("number"),
            *(pl.col(name).alias(role) for role, name in found.items()),
            pl.lit(None, dtype=pl.String).alias("reason"),
            pl.lit(None, dtype=pl.String).alias("text"),
        )
        return frame.collect()
    except FileNotFoundError:
        raise DataError(f"{path}: no such file; check the path") from None
    except (OSError, pl.exceptions.PolarsError) as error:
        cause = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise DataError(
            f"{path}: cannot be read as Parquet ({cause}); check that the file is whole"
        ) from error
