"""Read the rows of a history file: text, CSV with a header, JSON or Parquet."""

import csv
import io
import json
import sys
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import polars as pl

from longplay.data_shards.storage.parquet_tables import read_table, table_types
from longplay.launch.settings.errors import ConfigError

_GIVE_TEXT = "give a text file of original item ids"
_DELIMITERS = {".csv": ",", ".tsv": "\t"}
_JSON_LINES = (".jsonl", ".ndjson")


class Row(NamedTuple):
    """An event of a history file.

    Attributes:
        place: its place in the file, such as "line 3".
        item: the original item id, as the file holds it.
        fields: column -> value of a row of a table, or of a JSON object; {} where the file holds ids only.
    """

    place: str
    item: Any
    fields: Mapping[str, Any] = {}


def read_rows(
    path: Path, columns: Sequence[str], *, one_per_line: bool, more: Collection[str] = ()
) -> list[Row]:
    """Return the rows of a history file in order; its name decides how it is read.

    Args:
        path: "-", standard input, and other names are text. `.csv` and `.tsv` with one of `columns` in the
            first line are tables. `.json` is a list, and `.jsonl` or `.ndjson` one value per line; a value
            may be an object with one of `columns`. `.parquet` has one of `columns`, or a single column.
        columns: names of the item column, the preferred first.
        one_per_line: take each line of text as one value; otherwise split it at whitespace and commas.
        more: other columns that are used if they are present. Of `.parquet`, no further ones are read.

    Raises:
        ConfigError: the file cannot be read in the format that its name gives.
    """
    name = "standard input" if str(path) == "-" else str(path)
    try:
        if path.suffix.lower() == ".parquet":
            return list(_parquet(path, columns, more, name))
        text = sys.stdin.read() if str(path) == "-" else path.read_bytes().decode()
        kind = path.suffix.lower()
        return list(_parse(text.removeprefix("\ufeff"), kind, columns, more, name, one_per_line))
    except ConfigError:
        raise
    except (OSError, ValueError, RecursionError, csv.Error, pl.exceptions.PolarsError) as error:
        cause = error.strerror if isinstance(error, OSError) else str(error).partition("\n")[0]
        cause = "not text" if isinstance(error, UnicodeDecodeError) else cause
        raise ConfigError(f"--history {name}: cannot be read ({cause}); {_GIVE_TEXT}") from None


def _parse(
    text: str, kind: str, columns: Sequence[str], more: Collection[str], name: str, one_per_line: bool
) -> Iterable[Row]:
    """Parse a file that is not Parquet; `kind` is its suffix."""
    if kind == ".json":
        return _json_list(text, columns, name)
    if kind in _JSON_LINES:
        return _json_lines(text, columns, name)
    if kind in _DELIMITERS:
        rows = csv.DictReader(io.StringIO(text, newline=""), delimiter=_DELIMITERS[kind])
        header = list(rows.fieldnames or ())
        for column in (*columns, *more):
            if header.count(column) > 1:
                raise ConfigError(f"--history {name}: column {column!r} occurs twice; rename one")
        for column in columns:
            if column in header:
                return (Row(f"line {rows.line_num}", row[column], row) for row in rows)
    if one_per_line:
        lines = enumerate(text.replace("\r\n", "\n").split("\n"), 1)
        return (Row(f"line {number}", line) for number, line in lines if line)
    lines = enumerate(text.splitlines(), 1)
    return (Row(f"line {number}", word) for number, line in lines for word in line.replace(",", " ").split())


def _json_list(text: str, columns: Sequence[str], name: str) -> Iterator[Row]:
    content = json.loads(text)
    if not isinstance(content, list):
        raise ConfigError(f"--history {name}: is not a JSON list; give a list of original item ids")
    for number, value in enumerate(content, 1):
        yield _row(f"entry {number}", value, columns, name)


def _json_lines(text: str, columns: Sequence[str], name: str) -> Iterator[Row]:
    for number, line in enumerate(text.split("\n"), 1):
        if line.strip():
            yield _row(f"line {number}", json.loads(line), columns, name)


def _row(place: str, value: Any, columns: Sequence[str], name: str) -> Row:
    """Return the row of a JSON object, or of an id."""
    if not isinstance(value, dict):
        return Row(place, value)
    return Row(place, value[_choose(columns, list(value), f"{name}, {place}")], value)


def _parquet(path: Path, columns: Sequence[str], more: Collection[str], name: str) -> Iterator[Row]:
    present = list(table_types(path))
    column = present[0] if len(present) == 1 else _choose(columns, present, name)
    names = [one for one in present if one == column or one in more]
    rows = read_table(path, names).iter_rows(named=True)
    return (Row(f"row {number}", row[column], row) for number, row in enumerate(rows, 1))


def _choose(columns: Sequence[str], present: list[str], where: str) -> str:
    for column in columns:
        if column in present:
            return column
    raise ConfigError(
        f"--history {where}: has no {' or '.join(map(repr, columns))} (but {', '.join(map(repr, present))}); "
        "rename the item column"
    )
