"""Split lines of text into fields: all at once if every line is regular, line by line otherwise.

A row is a line, so that messages give the line number that an editor shows. A quoted field may contain the
separator but not a line break.
"""

from __future__ import annotations

import re
from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pyarrow as pa
import pyarrow.csv as pa_csv

from longplay.data_shards.readers.bad_rows import (
    BAD_QUOTING,
    BLANK_LINE,
    TOO_FEW_COLUMNS,
    TOO_MANY_COLUMNS,
    BadRows,
)
from longplay.data_shards.readers.fields import RowFormat, find_column, parse_rows
from longplay.data_shards.readers.sources import Block, ParsedBlock
from longplay.data_shards.readers.text_blocks import TextBlock, TextFile, file_identity

_UNIT_SEPARATOR = b"\x1f"
_MAX_IRREGULAR_LINES = 4096
_PARTS = 16
_SAFETY = 1.5  # later lines may be shorter than the first ones by this factor


@dataclass(frozen=True)
class Layout:
    """How the lines of one file are split into fields, and which fields are read.

    Attributes:
        path: the file.
        sep: the separator.
        header: names of all fields.
        form: which columns are read, and which values are usable.
        quotes: fields may be quoted with `"`.
        has_header_line: the first line is a header.
        nameable: the user can choose the columns on the command line.
        at: key of `form.names()` -> index of its field.
    """

    path: Path
    sep: str
    header: Sequence[str]
    form: RowFormat
    quotes: bool
    has_header_line: bool
    nameable: bool = False
    at: dict[str, int] = field(init=False)

    def __post_init__(self) -> None:
        at = {
            key: find_column(name, self.header, f"--{key}" if self.nameable else None, self.path)
            for key, name in self.form.names().items()
        }
        object.__setattr__(self, "at", at)

    def parse(self, data: bytes, first_number: int) -> ParsedBlock:
        """Parse whole lines into usable events; `first_number` is the number of the first line."""
        table = self._split_in_bulk(data)
        if table is not None:
            return parse_rows(table, self.form, f"{self.path}, line", first_number)
        if count_lines(data) <= _MAX_IRREGULAR_LINES:
            return parse_rows(self._split_each_line(data), self.form, f"{self.path}, line", first_number)
        parts = []
        for part in _cut(data, _PARTS):
            parts.append(self.parse(part, first_number))
            first_number += parts[-1].rows_in
        return _concatenate(parts)

    def _split_in_bulk(self, data: bytes) -> pl.DataFrame | None:
        """Return the fields as text, or None if a line is blank, quoted, not UTF-8 or has another width."""
        sep = self.sep.encode()
        if self.quotes and b'"' in data:
            return None
        if len(sep) > 1:
            if _UNIT_SEPARATOR in data:
                return None
            data, sep = data.replace(sep, _UNIT_SEPARATOR), _UNIT_SEPARATOR
        positions = sorted(set(self.at.values()))
        try:
            table = pa_csv.read_csv(
                pa.BufferReader(data),
                pa_csv.ReadOptions(
                    column_names=[str(at) for at in range(len(self.header))],
                    block_size=len(data) + 1,
                    use_threads=False,
                ),
                pa_csv.ParseOptions(delimiter=sep.decode(), quote_char=False, ignore_empty_lines=False),
                pa_csv.ConvertOptions(
                    include_columns=[str(at) for at in positions],
                    column_types={str(at): pa.string() for at in positions},
                    strings_can_be_null=False,
                ),
            )
        except pa.ArrowInvalid:
            return None
        if table.num_rows != count_lines(data):
            return None
        frame = pl.from_arrow(table)
        assert isinstance(frame, pl.DataFrame)
        if frame.select(pl.all_horizontal(pl.all().fill_null("") == "").any()).item():
            return None  # this may be a blank line, which is parsed as a line of empty fields
        return frame.select(pl.col(str(at)).alias(key) for key, at in self.at.items())

    def _split_each_line(self, data: bytes) -> pl.DataFrame:
        """Return the fields as text, null where missing, with `reason` and `text` for the unusable lines."""
        lines = data.decode("utf-8", "replace").removesuffix("\n").split("\n")
        block = pl.DataFrame(
            {"line": [line.removesuffix("\r") for line in lines]}, schema={"line": pl.String}
        )
        line = pl.col("line")
        quoted = self.quotes and b'"' in data
        if quoted:  # after a leading separator, every field is one match of the pattern
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
            pl.when(line.str.strip_chars() == "")
            .then(pl.lit(BLANK_LINE))
            .when(~well_quoted)
            .then(pl.lit(BAD_QUOTING))
            .when(width < len(self.header))
            .then(pl.lit(TOO_FEW_COLUMNS))
            .when(width > len(self.header))
            .then(pl.lit(TOO_MANY_COLUMNS))
        )
        values = {key: pl.col("fields").list.get(at, null_on_oob=True) for key, at in self.at.items()}
        if quoted:
            values = {
                key: value.str.strip_prefix(self.sep).str.strip_chars(' "') for key, value in values.items()
            }
        return block.select(**values, reason=reason, text=line)


@dataclass(frozen=True)
class _LayoutBlock:
    """A block of lines and their layout."""

    text: TextBlock
    layout: Layout

    @property
    def part(self) -> str:
        return str(self.text.path)

    @property
    def weight(self) -> int:
        return self.text.weight

    def parse(self) -> ParsedBlock:
        first_number = 2 if self.layout.has_header_line else 1
        return self.layout.parse(self.text.read(), first_number)


class TextSource(ABC):
    """Base of the sources that read text files."""

    @abstractmethod
    def describe(self) -> dict[str, Any]:
        """Return `{"format", "paths", "options"}` for the manifest."""

    @abstractmethod
    def files(self) -> tuple[Path, ...]:
        """Return the files in the order in which they are read.

        Raises:
            DataError: a required file is missing.
        """

    @abstractmethod
    def layout(self, file: TextFile) -> Layout:
        """Return how the lines of one of the files are split.

        Raises:
            DataError: a column is missing.
        """

    def fingerprint(self) -> list[Any]:
        return [file_identity(path) for path in self.files()]

    def max_events(self) -> int:
        most = 0
        for path in self.files():
            file = TextFile.open(path)
            lines = next(file.blocks(1 << 16, skip_header=False)).read()
            most += int(_SAFETY * file.max_text_bytes() * count_lines(lines) / len(lines)) + 1
        return most

    def total_weight(self) -> int:
        return sum(TextFile.open(path).num_bytes for path in self.files())

    def blocks(self, block_bytes: int) -> Iterator[Block]:
        for path in self.files():
            file = TextFile.open(path)
            layout = self.layout(file)
            for text in file.blocks(block_bytes, skip_header=layout.has_header_line):
                yield _LayoutBlock(text, layout)


def count_lines(data: bytes) -> int:
    """Return the number of lines. The last line may lack its line break."""
    return data.count(b"\n") + (not data.endswith(b"\n") and len(data) > 0)


def header_names(line: bytes, sep: str) -> list[str]:
    """Return the column names of a header line."""
    text = line.decode("utf-8-sig", "replace").rstrip("\r\n")
    return [name.strip().strip('"') for name in text.split(sep)]


def _cut(data: bytes, num_parts: int) -> Iterator[bytes]:
    """Divide lines into about `num_parts` parts of whole lines."""
    begin, target = 0, len(data) // num_parts + 1
    while begin < len(data):
        end = data.find(b"\n", begin + target) + 1 or len(data)
        yield data[begin:end]
        begin = end


def _concatenate(parts: list[ParsedBlock]) -> ParsedBlock:
    """Join consecutive parts of one block, whose unusable rows are already numbered within the file."""
    bad_rows, dropped = BadRows(), {}
    for part in parts:
        bad_rows.add(part.bad_rows)
        for reason, count in part.dropped.items():
            dropped[reason] = dropped.get(reason, 0) + count
    events = [np.concatenate([getattr(part, role) for part in parts]) for role in ("user", "item", "time")]
    return ParsedBlock(
        events[0], events[1], events[2], sum(part.rows_in for part in parts), bad_rows, dropped
    )
