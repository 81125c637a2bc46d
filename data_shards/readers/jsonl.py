"""Line-delimited JSON: one object per line, plain, compressed or archived."""

# pyright: reportAttributeAccessIssue=false

from __future__ import annotations

import functools
import json
from collections.abc import Callable, Collection, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from longplay.data_shards.errors import DataError
from longplay.data_shards.readers.arguments import add_file_arguments, file_options
from longplay.data_shards.readers.bad_rows import BLANK_LINE, NOT_JSON
from longplay.data_shards.readers.database import query
from longplay.data_shards.readers.inputs import find_files
from longplay.data_shards.readers.registry import READERS, Reader
from longplay.data_shards.readers.row_parser import RawTable
from longplay.data_shards.readers.tables import HEAD_ROWS, FileSource, TableFile
from longplay.data_shards.readers.text_files import TextFile
from longplay.data_shards.readers.text_lines import LineFormat
from longplay.data_shards.readers.values import literal, trimmed

SUFFIXES = (".jsonl", ".json", ".ndjson")
_LINES = LineFormat("\x1f", 1, quotes=False)
_ROUNDED = r"^(-?[0-9]+([.][0-9]+([eE][+-]?[0-9]+)?|[eE][+-]?[0-9]+)|-?(NaN|nan|Infinity|inf))$"
"""How DuckDB prints a number that is not an integer. A string may look the same."""
_OTHER_JSON = {
    "[": "a JSON array; write each of its objects on one line, for example with `jq -c '.[]'`",
    "{'": "Python literals; write them as JSON, for example with `json.dumps(ast.literal_eval(line))`",
    "{u'": "Python literals; write them as JSON, for example with `json.dumps(ast.literal_eval(line))`",
    "{": "not whole JSON objects; write each object on one line, for example with `jq -c .`",
}


@dataclass(frozen=True, kw_only=True)
class JsonLinesSource(FileSource):
    """Files of JSON objects, one per line. Fields of nested objects are not columns."""

    member: str = "*"

    def find_files(self) -> tuple[Path, ...]:
        return find_files(self.paths, SUFFIXES)

    def open_file(self, path: Path) -> TableFile:
        columns = self.columns
        features = (one.column for one in columns.features if one.kind == "categorical")
        return _JsonFile(TextFile.open(path, self.member), {columns.user, columns.item, *features})


class _JsonFile:
    """A text file of JSON objects. Its columns are the keys of the first objects.

    Args:
        file: the file.
        exact: keys whose numbers keep the text of the file.
    """

    is_text = True

    def __init__(self, file: TextFile, exact: Collection[str]) -> None:
        self.path, self.weight, self._file, self._exact = file.path, file.num_bytes, file, exact
        objects, data = [], file.first_lines(skip_header=False)
        for line in data.decode("utf-8", "replace").split("\n")[:HEAD_ROWS]:
            try:
                objects.append(json.loads(line))
            except (ValueError, RecursionError):
                continue
        keys = dict.fromkeys(key for one in objects if isinstance(one, dict) for key in one)
        start = data[:8].decode("utf-8", "replace").lstrip()
        if not keys or start.startswith("["):
            other = (
                "not JSON objects; pass one object per line, or read other text with `longplay prepare csv`"
            )
            kind = next((kind for begin, kind in _OTHER_JSON.items() if start.startswith(begin)), other)
            raise DataError(f"{file.path}: the first lines are {kind}")
        self.header: Sequence[str] = list(keys)
        self.max_rows = file.max_lines(data)

    def head(self) -> pa.Table:
        table = self._table(self._file.first_lines(skip_header=False), range(len(self.header))).table
        return table.filter(table["fault"].is_null()).drop_columns(["fault", "text"]).slice(0, HEAD_ROWS)

    def blocks(self, block_bytes: int, needed: Sequence[int]) -> Iterator[tuple[int, Callable[[], RawTable]]]:
        for block in self._file.blocks(block_bytes, skip_header=False):
            yield block.weight, functools.partial(self._read, block.read, needed)

    def _read(self, read: Callable[[], bytes], needed: Sequence[int]) -> RawTable:
        return self._table(read(), needed)

    def _table(self, data: bytes, needed: Sequence[int]) -> RawTable:
        lines, numbers, num_blank = _LINES.split(data, [0])
        keys = [self.header[at].replace("~", "~0").replace("/", "~1") for at in needed]
        found = ", ".join(f"found[{place}] AS c{at}" for place, at in enumerate(needed, 1))
        listed = ", ".join(literal(f"/{key}") for key in keys)  # JSON pointers
        fault = "fault" if "fault" in lines.column_names else "NULL"
        fault = (
            f"CASE WHEN {fault} IS NOT NULL THEN {fault} WHEN {trimmed('c0')} = '' THEN '{BLANK_LINE}' "
            f"WHEN NOT coalesce(json_valid(c0), false) THEN '{NOT_JSON}' "
            f"WHEN json_type(c0) <> 'OBJECT' THEN '{NOT_JSON}' END"
        )
        table = query(
            f"SELECT {found}, fault, CASE WHEN fault IS NOT NULL THEN line END AS text FROM "
            f"(SELECT *, CASE WHEN fault IS NULL THEN json_extract_string(line, [{listed}]) END AS found "
            f"FROM (SELECT c0 AS line, {fault} AS fault FROM block))",
            block=lines,
        )
        for place, at in enumerate(needed):
            if self.header[at] in self._exact:
                exact = _as_written(table[place], lines["c0"], self.header[at])
                table = table.set_column(place, f"c{at}", exact)
        return RawTable(table, f"{self.path}, line", np.asarray(numbers) + 1, num_blank)


def _as_written(texts: pa.ChunkedArray, lines: pa.ChunkedArray, key: str) -> pa.ChunkedArray | pa.Array:
    """Return the values of a key with numbers as the file has them: DuckDB turns `1e3` into `1000.0`.

    Unquoted NaN and infinities, which are not JSON, become null.
    """
    rounded = pc.fill_null(pc.match_substring_regex(texts, _ROUNDED), False)
    if not (found := lines.filter(rounded).to_pylist()):
        return texts

    def written(line: str) -> str | None:
        try:
            return json.loads(
                line,
                strict=False,
                parse_float=str,
                parse_int=str,
                parse_constant=lambda _: None,
                object_pairs_hook=lambda pairs: dict(reversed(pairs)),  # DuckDB takes the first of equal keys
            )[key]
        except (ValueError, RecursionError):  # `nan` and `inf`, which Python does not accept
            return None

    values = pa.array([written(line) for line in found], pa.string())
    return pc.replace_with_mask(texts.combine_chunks(), rounded.combine_chunks(), values)


READERS.register(
    "jsonl",
    Reader(
        help="JSON objects, one per line, also compressed or in a .zip or .tar",
        add_arguments=add_file_arguments,
        open=lambda args: JsonLinesSource(format="jsonl", **file_options(args)),
    ),
)
