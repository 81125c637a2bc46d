"""Split lines of text into fields: all at once if every line is regular, line by line otherwise.

A row is a line, so that messages give the line number that an editor shows. A quoted field may contain the
separator but not a line break.
"""

from __future__ import annotations

import csv
import re
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import polars as pl
import pyarrow as pa
import pyarrow.csv as pa_csv

from longplay.data_shards.readers.bad_rows import (
    BAD_QUOTING,
    BLANK_LINE,
    NOT_UTF8,
    TOO_FEW_COLUMNS,
    TOO_MANY_COLUMNS,
)

BYTE_ORDER_MARK = b"\xef\xbb\xbf"
_UNIT_SEPARATOR = b"\x1f"
_MAX_IRREGULAR_LINES = 4096
_PARTS = 16
_REPLACEMENT = "\ufffd"
_NEWLINE, _RETURN, _QUOTE = b"\n"[0], b"\r"[0], b'"'[0]


@dataclass(frozen=True)
class LineFormat:
    """How lines are split into fields.

    Attributes:
        sep: the separator.
        width: number of fields of a line.
        quotes: fields may be quoted with `"`.
    """

    sep: str
    width: int
    quotes: bool

    def split(self, data: bytes, needed: list[int]) -> tuple[pa.Table, np.ndarray, int]:
        """Split whole lines into fields.

        Args:
            data: the lines. The last one may lack its line break.
            needed: indices of the fields to return.

        Returns:
            The fields as text columns `c0`, `c1`, ..., with `fault` and `text` if a line is unusable; the
            (rows,) int64 number of each line, from 0; and the number of blank lines, which are left out.
        """
        num_lines = count_lines(data)
        numbers = np.arange(num_lines)
        if b"\n\n" in data or b"\n\r\n" in data or data[:1] in (b"\n", b"\r"):
            data, numbers = _without_blank_lines(data)
        table = (
            pa.concat_tables(self._tables(data, needed), promote_options="default")
            if data
            else _empty(needed)
        )
        if "fault" in table.column_names:  # a line of spaces is blank too
            blank = np.array([fault == BLANK_LINE for fault in table["fault"].to_pylist()])
            table, numbers = table.filter(~blank), numbers[~blank]
        return table, numbers, num_lines - len(numbers)

    def _tables(self, data: bytes, needed: list[int]) -> Iterator[pa.Table]:
        table = self._split_in_bulk(data, needed)
        if table is not None:
            yield table
        elif count_lines(data) <= _MAX_IRREGULAR_LINES:
            yield self._split_each_line(data, needed)
        else:
            for part in _cut(data, _PARTS):
                yield from self._tables(part, needed)

    def _split_in_bulk(self, data: bytes, needed: list[int]) -> pa.Table | None:
        """Return the fields, or None if a line is irregular: not UTF-8, badly quoted, or of another width."""
        sep, quoted = self.sep.encode(), self.quotes and b'"' in data
        if data.startswith(BYTE_ORDER_MARK):  # pyarrow would leave it out, also in the middle of a file
            return None
        if len(sep) > 1:
            if _UNIT_SEPARATOR in data:
                return None
            data, sep = data.replace(sep, _UNIT_SEPARATOR), _UNIT_SEPARATOR
        if quoted and _has_stray_quote(data, sep[0]):
            return None
        names = [f"c{at}" for at in needed]
        try:
            table = pa_csv.read_csv(
                pa.BufferReader(data),
                pa_csv.ReadOptions(
                    column_names=[f"c{at}" for at in range(self.width)],
                    block_size=len(data) + 1,
                    use_threads=False,
                ),
                pa_csv.ParseOptions(
                    delimiter=sep.decode(), quote_char='"' if quoted else False, ignore_empty_lines=False
                ),
                pa_csv.ConvertOptions(
                    include_columns=names,
                    column_types=dict.fromkeys(names, pa.string()),
                    strings_can_be_null=False,
                ),
            )
        except pa.ArrowInvalid:
            return None
        return table if table.num_rows == count_lines(data) else None

    def _split_each_line(self, data: bytes, needed: list[int]) -> pa.Table:
        """Return the fields, null where missing, with `fault` and `text` for the unusable lines."""
        lines = data.decode("utf-8", "replace").removesuffix("\n").split("\n")
        block = pl.DataFrame(
            {"line": [line.removesuffix("\r") for line in lines], "is_utf8": _are_utf8(data, len(lines))},
            schema={"line": pl.String, "is_utf8": pl.Boolean},
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
        values = {f"c{at}": pl.col("fields").list.get(at, null_on_oob=True) for at in needed}
        damaged = pl.any_horizontal(
            [value.str.contains(_REPLACEMENT, literal=True).fill_null(False) for value in values.values()]
        )
        fault = (  # a line of separators alone is not blank: its fields are empty
            pl.when((line.str.strip_chars() == "") & (width != self.width))
            .then(pl.lit(BLANK_LINE))
            .when(~well_quoted)
            .then(pl.lit(BAD_QUOTING))
            .when(width < self.width)
            .then(pl.lit(TOO_FEW_COLUMNS))
            .when(width > self.width)
            .then(pl.lit(TOO_MANY_COLUMNS))
            .when(~pl.col("is_utf8") & damaged)
            .then(pl.lit(NOT_UTF8))
        )
        if quoted:
            values = {name: _unquoted(value.str.strip_prefix(self.sep)) for name, value in values.items()}
        return block.select(**values, fault=fault, text=line).to_arrow().cast(_schema(needed))


def split_line(line: bytes, sep: str, *, quotes: bool) -> list[str]:
    """Return the fields of one line, by the rules of `LineFormat`."""
    text = line.decode("utf-8", "replace").rstrip("\r\n")
    if quotes and '"' in text and len(sep) == 1:
        return next(csv.reader([text], delimiter=sep))
    return text.split(sep)


def count_lines(data: bytes) -> int:
    """Return the number of lines. The last line may lack its line break."""
    return data.count(b"\n") + (not data.endswith(b"\n") and len(data) > 0)


def _are_utf8(data: bytes, num_lines: int) -> list[bool]:
    """Return whether each line is UTF-8."""
    try:
        data.decode()
    except UnicodeDecodeError:
        return [_is_utf8(line) for line in data.removesuffix(b"\n").split(b"\n")]
    return [True] * num_lines


def _is_utf8(line: bytes) -> bool:
    try:
        line.decode()
    except UnicodeDecodeError:
        return False
    return True


def _unquoted(field: pl.Expr) -> pl.Expr:
    quoted = field.str.starts_with('"')
    return (
        pl.when(quoted)
        .then(field.str.slice(1, field.str.len_chars() - 2).str.replace_all('""', '"'))
        .otherwise(field)
    )


def _schema(needed: list[int]) -> pa.Schema:
    return pa.schema([(name, pa.string()) for name in (*(f"c{at}" for at in needed), "fault", "text")])


def _empty(needed: list[int]) -> pa.Table:
    return _schema(needed).empty_table().select([f"c{at}" for at in needed])


def _without_blank_lines(data: bytes) -> tuple[bytes, np.ndarray]:
    """Return the lines that are not empty, and their numbers."""
    content = np.frombuffer(data, np.uint8)
    ends = np.flatnonzero(content == _NEWLINE) + 1
    if not len(ends) or ends[-1] < len(content):
        ends = np.append(ends, len(content))
    lengths = np.diff(ends, prepend=0)
    crlf = (lengths == 2) & (content[ends - lengths] == _RETURN) & (content[ends - 1] == _NEWLINE)
    kept = ~((lengths == 1) & (content[ends - 1] == _NEWLINE) | crlf)
    return content[np.repeat(kept, lengths)].tobytes(), np.flatnonzero(kept)


def _has_stray_quote(data: bytes, sep: int) -> bool:
    """Return whether some quote neither opens nor closes a field, and is not doubled inside one.

    Of the quotes of a line, the first, third, ... open a field or end a pair; the others close a field or
    start a pair.
    """
    content = np.frombuffer(b"\n" + data + b"\n", np.uint8)
    at = np.flatnonzero(content == _QUOTE)
    if (np.searchsorted(at, np.flatnonzero(content == _NEWLINE)) % 2).any():
        return True
    before, after = content[at[::2] - 1], content[at[1::2] + 1]
    opens = (before == sep) | (before == _NEWLINE) | (before == _QUOTE)
    closes = (after == sep) | (after == _NEWLINE) | (after == _RETURN) | (after == _QUOTE)
    return not bool(opens.all() and closes.all())


def _cut(data: bytes, num_parts: int) -> Iterator[bytes]:
    """Divide lines into about `num_parts` parts of whole lines."""
    begin, target = 0, len(data) // num_parts + 1
    while begin < len(data):
        end = data.find(b"\n", begin + target) + 1 or len(data)
        yield data[begin:end]
        begin = end
