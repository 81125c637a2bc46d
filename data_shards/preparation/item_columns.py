"""Columns of the items, such as titles, categories and vectors, from a table with a row for each item.

DuckDB reads the table and joins it to the items within a memory limit. A column of text becomes integers or
floats only if every field is such a number, without leading zeros; titles remain text.
"""

from __future__ import annotations

import csv
import re
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import duckdb
import numpy as np
import pyarrow as pa

from longplay.data_shards.errors import DataError
from longplay.data_shards.readers.values import id_sql, literal, quoted
from longplay.data_shards.storage.id_column import IdColumn
from longplay.data_shards.storage.item_columns import ITEM_COLUMNS, TITLE

_PARQUET, _JSON = (".parquet", ".pq"), (".jsonl", ".ndjson", ".json")
_TAB_SEPARATED = (".tsv", ".tab", ".item")
_SEPARATORS = (",", "\t", ";", "|")
_RECBOLE_NAME = re.compile(r"(.+):(token|float)(_seq)?")
_NUMBER = "'[+-]?(0|[1-9][0-9]*)([.][0-9]*)?([eE][+-]?[0-9]+)?'"
_AS_TEXT = re.compile(r"(ENUM.*|UUID|U?HUGEINT|JSON|INTERVAL|TIME|TIMETZ|BIT)")
_GUESSED = re.compile(r"(DATE|TIME.*|UUID|JSON|U?HUGEINT)((\[\])*)")
"""Types that DuckDB finds in JSON, which has only text there."""


@dataclass(frozen=True)
class JoinedColumns:
    """The columns of a table in the order of the items.

    Attributes:
        schema: their names and types.
        num_unknown: rows of the table whose id is missing or is not an item's.
        num_missing: items without a row, whose columns are null.
    """

    schema: pa.Schema
    num_unknown: int
    num_missing: int
    _path: Path
    _joined: duckdb.DuckDBPyRelation

    def batches(self, rows: int) -> Iterator[pa.RecordBatch]:
        """Yield the columns of consecutive items from the first to the last, about `rows` at a time.

        Raises:
            DataError: the memory or the disk space does not suffice.
        """
        with _reading(self._path):
            yield from self._joined.to_arrow_reader(rows)


@contextmanager
def join_item_columns(
    original_ids: IdColumn, path: Path, *, item: str, memory_bytes: int, scratch: Path
) -> Iterator[JoinedColumns]:
    """Read the columns of the items from a table. The result can be used inside the `with` statement.

    Args:
        original_ids: ids of the items, in the order of item ids.
        path: delimited text with a header, JSON lines or Parquet, by its extension; a further `.gz` or `.zst`
            means that text is compressed.
        item: name of the column that holds the original ids.
        memory_bytes: limit of DuckDB's memory; it spills to `scratch`.
        scratch: folder for temporary files, which are deleted at the end.

    Raises:
        DataError: the table cannot be read, lacks the column of the ids or any other, has a column of
            `items.parquet`, has an id twice, or has none of the items.
    """
    limits: Any = {"memory_limit": f"{memory_bytes // 2**20}MiB", "temp_directory": str(scratch)}
    with duckdb.connect(config=limits) as database:
        with _reading(path):
            joined = _Join(database, original_ids, path, item).joined()
        yield joined


class _Join:
    """The items and one table, in a database."""

    def __init__(
        self, database: duckdb.DuckDBPyConnection, original_ids: IdColumn, path: Path, item: str
    ) -> None:
        self._database, self._ids = database, original_ids
        self._path, self._item = path, item
        self._kind = Path(re.sub(r"\.(gz|zst)$", "", path.name.lower())).suffix

    def joined(self) -> JoinedColumns:
        """Load the table, check its ids and join it to the items."""
        source, types = self._source()
        names = self._additional(types)
        key = id_sql(quoted(self._item), types[self._item], "string" if self._ids.is_text else "integer")
        values = ", ".join(_value(name, types[name]) for name in names)
        self._query(f"CREATE TEMP TABLE found AS SELECT {key} AS id, {values} FROM {source}")
        items = pa.table({"position": np.arange(len(self._ids)), "id": self._ids.values.to_arrow()})
        self._database.register("items", items)
        rows, known = self._check_ids()
        is_typed = self._kind in (*_PARQUET, *_JSON)
        selected = ", ".join(f"found.{quoted(name)}" if is_typed else self._narrowed(name) for name in names)
        query = f"SELECT {selected} FROM items LEFT JOIN found USING (id) ORDER BY position"
        schema = self._database.sql(f"SELECT * FROM ({query}) LIMIT 0").to_arrow_table().schema
        joined = self._database.sql(query)
        return JoinedColumns(schema, rows - known, len(self._ids) - known, self._path, joined)

    def _query(self, sql: str) -> list[tuple[Any, ...]]:
        return self._database.execute(sql).fetchall()

    def _source(self) -> tuple[str, dict[str, str]]:
        """Return a table function that reads the table, and the type of each column."""
        file = literal(re.sub(r"([*?\[])", r"[\1]", str(self._path.absolute())))
        if self._kind in _PARQUET:
            source = f"read_parquet({file})"
            return source, self._types(source)
        if self._kind in _JSON:
            found = self._types(f"read_json({file}, sample_size=-1)")
            types = {name: _GUESSED.sub(r"VARCHAR\2", kind, count=1) for name, kind in found.items()}
            types |= {name: "VARCHAR" for name in (self._item, TITLE) if name in types}
            return f"read_json({file}, columns={_mapping(types)})", types
        return self._text(file)

    def _types(self, source: str) -> dict[str, str]:
        return {row[0]: row[1] for row in self._query(f"DESCRIBE SELECT * FROM {source}")}

    def _text(self, file: str) -> tuple[str, dict[str, str]]:
        """As `_source` for delimited text. If DuckDB guesses its dialect, it can lose all rows."""
        form = "auto_detect=false, strict_mode=false, quote='', escape='', header=false"
        form += ", delim=E'\\x01', columns={line: 'VARCHAR'}"
        header = self._query(f"SELECT line FROM read_csv({file}, {form}) LIMIT 1")
        if not header:
            raise DataError(f"{self._path}: is empty; pass a table with a header line")
        line = header[0][0]
        separator = "\t" if self._kind in _TAB_SEPARATED else max(_SEPARATORS, key=line.count)
        names = [name.strip() for name in next(csv.reader([line], delimiter=separator))]
        recbole = [_RECBOLE_NAME.fullmatch(name) for name in names]
        names = [match[1] if match else name for match, name in zip(recbole, names, strict=True)]
        for name in names:
            if names.count(name) > 1:
                raise DataError(f"{self._path}: column {name!r} occurs twice; rename one")
        types = dict.fromkeys(names, "VARCHAR")
        form = f"""auto_detect=false, quote='"', escape='"', header=true, columns={_mapping(types)}"""
        return f"read_csv({file}, delim={literal(separator)}, nullstr='', {form})", types

    def _additional(self, types: dict[str, str]) -> list[str]:
        """Return the names of the columns besides the ids."""
        names = [name for name in types if name != self._item]
        if self._item not in types:
            columns = ", ".join(map(repr, names))
            raise DataError(
                f"{self._path}: no column {self._item!r} (columns: {columns}); name that of the ids"
            )
        for name in names:
            if name in ITEM_COLUMNS:
                raise DataError(f"{self._path}: column {name!r} is a column of every dataset; rename it")
        if not names:
            raise DataError(
                f"{self._path}: has no column besides {self._item!r}; pass a table with more columns"
            )
        return names

    def _check_ids(self) -> tuple[int, int]:
        """Return the number of rows, and of rows that belong to an item."""
        twice = self._query(
            "SELECT id, count(*) FROM found WHERE id IS NOT NULL GROUP BY id HAVING count(*) > 1 "
            "ORDER BY min(found.rowid) LIMIT 1"
        )
        for original, count in twice:
            raise DataError(
                f"{self._path}: {count} rows have {original!r} in column {self._item!r}; keep one of them"
            )
        ((rows,),) = self._query("SELECT count(*) FROM found")
        ((known,),) = self._query("SELECT count(*) FROM found SEMI JOIN items USING (id)")
        if not known:
            raise DataError(
                f"{self._path}: none of the {rows} ids in column {self._item!r} is an item of the dataset, "
                f"whose ids are {self._ids.description}; name the column of the ids"
            )
        return rows, known

    def _narrowed(self, name: str) -> str:
        """Return the SQL of a column of text, as BIGINT or DOUBLE if every field is such a number."""
        column = f"found.{quoted(name)}"
        if name == TITLE:
            return column
        integer = f"CASE WHEN NOT regexp_matches({column}, '[.eE]') THEN TRY_CAST({column} AS BIGINT) END"
        number = f"CASE WHEN regexp_full_match({column}, {_NUMBER}) THEN 1 END"
        counts = f"SELECT count({column}), count({integer}), count({number}) FROM found"
        ((present, integers, numbers),) = self._query(counts)
        if not present or numbers < present:
            return column
        return f"{column}::{'BIGINT' if integers == present else 'DOUBLE'} AS {quoted(name)}"


def _value(name: str, dtype: str) -> str:
    """Return the SQL of a column in a type that Parquet has."""
    column = quoted(name)
    is_title = name == TITLE and not dtype.endswith(("]", ")"))
    return f"{column}::VARCHAR AS {column}" if is_title or _AS_TEXT.fullmatch(dtype) else column


def _mapping(types: dict[str, str]) -> str:
    return "{" + ", ".join(f"{literal(name)}: {literal(kind)}" for name, kind in types.items()) + "}"


@contextmanager
def _reading(path: Path) -> Iterator[None]:
    """Turn an error of DuckDB into one line."""
    try:
        yield
    except duckdb.Error as error:
        text = " ".join(str(error).partition("\n\n")[0].split())
        cause = re.sub(r"^[\w ]+ Error: |\(?Possible (fixes|Solution).*", "", text).strip()
        raise DataError(f"{path}: cannot be read ({cause}); pass CSV, JSON lines or Parquet") from None
