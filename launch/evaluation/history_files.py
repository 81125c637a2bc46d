"""Read the values of a history file: text, CSV with a header, JSON or Parquet."""

import csv
import io
import json
import sys
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import polars as pl

from longplay.launch.settings.errors import ConfigError

Value = tuple[str, Any]
"""Where a value stands, such as "line 3", and the value."""

_GIVE_TEXT = "give a text file of original item ids"
_DELIMITERS = {".csv": ",", ".tsv": "\t"}
_JSON_LINES = (".jsonl", ".ndjson")


def read_values(path: Path, columns: Sequence[str], *, one_per_line: bool) -> list[Value]:
    """Return the values of a history file in order; its name decides how it is read.

    Args:
        path: "-", standard input, and other names are text. `.csv` and `.tsv` with one of `columns` in the
            first line are tables. `.json` is a list, and `.jsonl` or `.ndjson` one value per line; a value
            may be an object with one of `columns`. `.parquet` has one of `columns`, or a single column.
        columns: names of the item column, the preferred first.
        one_per_line: take each line of text as one value; otherwise split it at whitespace and commas.

    Raises:
        ConfigError: the file cannot be read as what its name says.
    """
    name = "standard input" if str(path) == "-" else str(path)
    try:
        if path.suffix.lower() == ".parquet":
            return list(_parquet(path, columns, name))
        text = sys.stdin.read() if str(path) == "-" else path.read_bytes().decode()
        return list(_parse(text.removeprefix("\ufeff"), path.suffix.lower(), columns, name, one_per_line))
    except ConfigError:
        raise
    except (OSError, ValueError, RecursionError, csv.Error, pl.exceptions.PolarsError) as error:
        cause = error.strerror if isinstance(error, OSError) else str(error).partition("\n")[0]
        cause = "not text" if isinstance(error, UnicodeDecodeError) else cause
        raise ConfigError(f"--history {name}: cannot be read ({cause}); {_GIVE_TEXT}") from None


def _parse(text: str, kind: str, columns: Sequence[str], name: str, one_per_line: bool) -> Iterable[Value]:
    """Parse a file that is not Parquet; `kind` is its suffix."""
    if kind == ".json":
        return _json_list(text, columns, name)
    if kind in _JSON_LINES:
        return _json_lines(text, columns, name)
    if kind in _DELIMITERS:
        rows = csv.DictReader(io.StringIO(text, newline=""), delimiter=_DELIMITERS[kind])
        for column in columns:
            if column in (rows.fieldnames or ()):
                return ((f"line {rows.line_num}", row[column]) for row in rows)
    if one_per_line:
        lines = enumerate(text.replace("\r\n", "\n").split("\n"), 1)
        return ((f"line {number}", line) for number, line in lines if line)
    lines = enumerate(text.splitlines(), 1)
    return ((f"line {number}", word) for number, line in lines for word in line.replace(",", " ").split())


def _json_list(text: str, columns: Sequence[str], name: str) -> Iterator[Value]:
    content = json.loads(text)
    if not isinstance(content, list):
        raise ConfigError(f"--history {name}: is not a JSON list; give a list of original item ids")
    for number, value in enumerate(content, 1):
        yield f"entry {number}", _of_object(value, columns, f"{name}, entry {number}")


def _json_lines(text: str, columns: Sequence[str], name: str) -> Iterator[Value]:
    for number, line in enumerate(text.split("\n"), 1):
        if line.strip():
            yield f"line {number}", _of_object(json.loads(line), columns, f"{name}, line {number}")


def _of_object(value: Any, columns: Sequence[str], where: str) -> Any:
    """Return the item of a JSON object, and any other value as it is."""
    return value[_choose(columns, list(value), where)] if isinstance(value, dict) else value


def _parquet(path: Path, columns: Sequence[str], name: str) -> Iterator[Value]:
    present = list(pl.read_parquet_schema(path))
    column = present[0] if len(present) == 1 else _choose(columns, present, name)
    values = pl.read_parquet(path, columns=[column], glob=False)[column]
    return ((f"row {number}", value) for number, value in enumerate(values, 1))


def _choose(columns: Sequence[str], present: list[str], where: str) -> str:
    for column in columns:
        if column in present:
            return column
    raise ConfigError(
        f"--history {where}: has no {' or '.join(map(repr, columns))} (but {', '.join(map(repr, present))}); "
        "rename the item column"
    )
