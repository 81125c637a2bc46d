"""Delimited text files: ML-1M's `ratings.dat`, CSV, TSV and RecBole's `.inter`, plain, gzip or zstd.

A row is a line: files are read as lines first and split afterwards, so that every complaint carries the line
number an editor shows. A quoted field may hold the separator, not a line break.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import polars as pl

from longplay.data_shards.bad_rows import BAD_QUOTING, BLANK_LINE, TOO_FEW_COLUMNS, TOO_MANY_COLUMNS, BadRows
from longplay.data_shards.errors import DataError
from longplay.data_shards.fields import ROLES, Columns, find_column, usable_events
from longplay.data_shards.sources import BLOCK_ROWS, Progress, RawEvents, no_progress

_NOT_IN_TEXT = "\x00"
_TAB_SUFFIXES = (".tsv", ".inter")
_SEPARATORS = (",", "\t", ";", "|")
_ML1M_COLUMNS = Columns(user="UserID", item="MovieID", time="Timestamp")
_ML1M_HEADER = ("UserID", "MovieID", "Rating", "Timestamp")


@dataclass(frozen=True, kw_only=True)
class CsvSource:
    """Delimited text with a header line and named columns.

    Attributes:
        paths: files of the same kind, read one after the other.
        sep: the separator; None takes it from the file's extension or header line.
    """

    paths: tuple[Path, ...]
    columns: Columns = field(default_factory=Columns)
    sep: str | None = None

    def describe(self) -> dict[str, Any]:
        options = {**vars(self.columns), "sep": self.sep}
        return {"format": "csv", "paths": [str(path) for path in self.paths], "options": options}

    def read(self, progress: Progress = no_progress) -> RawEvents:
        frames, rows_in, bad_rows = [], 0, BadRows()
        for path in self.paths:
            lines = read_lines(path)
            header_line = (lines.item(0, "line") or "").removeprefix("\ufeff")
            sep = self.sep or _guess_separator(path, header_line)
            header = [name.strip().strip('"') for name in header_line.split(sep)]
            layout = _Layout(path, sep, header, self.columns, quotes=len(sep) == 1)
            frames.append(layout.parse(lines.slice(1), bad_rows, progress))
            rows_in += lines.height - 1
        return _gather(frames, rows_in, bad_rows, self.paths)


@dataclass(frozen=True, kw_only=True)
class Ml1mSource:
    """The original MovieLens 1M ratings: `UserID::MovieID::Rating::Timestamp`, no header.

    Attributes:
        path: `ratings.dat`, or the folder that holds it.
    """

    path: Path

    def describe(self) -> dict[str, Any]:
        return {"format": "ml1m", "paths": [str(self.path)], "options": {}}

    def read(self, progress: Progress = no_progress) -> RawEvents:
        path = self.path / "ratings.dat" if self.path.is_dir() else self.path
        lines, bad_rows = read_lines(path), BadRows()
        layout = _Layout(path, "::", _ML1M_HEADER, _ML1M_COLUMNS, quotes=False)
        frame = layout.parse(lines, bad_rows, progress)
        return _gather([frame], lines.height, bad_rows, (path,))


def read_lines(path: Path) -> pl.DataFrame:
    """All lines of a file, decompressed when its content says gzip or zstd.

    Returns:
        `line` String without its line end (null for an empty one), `number` Int64 from 1.

    Raises:
        DataError: missing, unreadable, empty, damaged or no text.
    """
    if path.is_dir():
        raise DataError(f"{path}: a folder, not a file; name the file to read")
    try:
        if path.stat().st_size == 0:
            raise DataError(f"{path}: empty; pass a file that holds events")
        lines = pl.read_csv(
            path,
            has_header=False,
            separator=_NOT_IN_TEXT,
            quote_char=None,
            schema={"line": pl.String},
            encoding="utf8-lossy",
            glob=False,
        )
    except FileNotFoundError:
        raise DataError(f"{path}: no such file; check the path") from None
    except pl.exceptions.NoDataError:
        raise DataError(f"{path}: empty; pass a file that holds events") from None
    except (OSError, pl.exceptions.PolarsError) as error:
        cause = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise DataError(
            f"{path}: cannot be read as text ({cause}); check that it is whole and holds no NUL bytes"
        ) from error
    return lines.with_columns(number=pl.int_range(1, pl.len() + 1, dtype=pl.Int64))


@dataclass(frozen=True)
class _Layout:
    """How the lines of one file split into fields, and which of the fields are wanted."""

    path: Path
    sep: str
    header: Sequence[str]
    columns: Columns
    quotes: bool

    def parse(self, lines: pl.DataFrame, bad_rows: BadRows, progress: Progress) -> pl.DataFrame:
        """Lines (`line`, `number`) -> usable events, block by block."""
        names = self.columns.names()
        at = {role: find_column(names[role], self.header, role, self.path) for role in ROLES}
        blocks, done = [], 0
        for block in lines.iter_slices(BLOCK_ROWS):
            raw = self._split(block, at)
            blocks.append(usable_events(raw, self.columns, f"{self.path}, line", bad_rows))
            done += block.height
            progress(f"reading {self.path.name}", done, lines.height)
        return pl.concat(blocks) if blocks else pl.DataFrame(schema=[(role, pl.Int64) for role in ROLES])

    def _split(self, block: pl.DataFrame, at: dict[str, int]) -> pl.DataFrame:
        """`line`, `number` -> `number`, `user`, `item`, `time` as text, `reason`, `text`."""
        line = pl.col("line")
        quoted = self.quotes and bool(block.select(line.str.contains('"', literal=True).any()).item())
        if quoted:  # a leading separator makes every field, the first included, one match of the pattern
            sep = self.sep if self.sep.isspace() else re.escape(self.sep)
            pattern = f'{sep}(?:"(?:[^"]|"")*"|[^"{sep}]*)'
            led = pl.concat_str(pl.lit(self.sep), line)
            block = block.with_columns(fields=led.str.extract_all(pattern))
            well_quoted = pl.col("fields").list.join("") == led
        else:
            block = block.with_columns(fields=line.str.split(self.sep))
            well_quoted = pl.lit(True)
        width = pl.col("fields").list.len()
        reason = (
            pl.when(line.is_null() | (line.str.strip_chars() == ""))
            .then(pl.lit(BLANK_LINE))
            .when(~well_quoted)
            .then(pl.lit(BAD_QUOTING))
            .when(width < len(self.header))
            .then(pl.lit(TOO_FEW_COLUMNS))
            .when(width > len(self.header))
            .then(pl.lit(TOO_MANY_COLUMNS))
        )
        values = {role: pl.col("fields").list.get(at[role], null_on_oob=True) for role in ROLES}
        if quoted:
            values = {
                role: value.str.strip_prefix(self.sep).str.strip_chars(' "') for role, value in values.items()
            }
        return block.select("number", **values, reason=reason, text=line)


def _guess_separator(path: Path, header: str) -> str:
    """Tab for `.tsv` and `.inter`, else the usual separator most frequent in the header, comma if none."""
    name = path.name.removesuffix(".gz").removesuffix(".zst")
    if name.endswith(_TAB_SUFFIXES):
        return "\t"
    return max(_SEPARATORS, key=header.count)


def _gather(frames: list[pl.DataFrame], rows_in: int, bad_rows: BadRows, paths: Sequence[Path]) -> RawEvents:
    """One source out of the files' events.

    Raises:
        DataError: no rows at all.
    """
    if rows_in == bad_rows.counts.get(BLANK_LINE, 0):
        raise DataError(
            f"{', '.join(map(str, paths))}: no events (only a header or blank lines); pass a file with rows"
        )
    return RawEvents(pl.concat(frames), rows_in, bad_rows)
