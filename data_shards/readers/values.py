"""Turn raw columns into ids, times and features with DuckDB. This module alone decides what is usable.

An integer is a 64-bit integer, or a float without a fraction (`978300760.0`) below the limit up to which
its type is exact: 2**53, or 2**24 for 32 bits. Text is an integer only if it has no leading zeros, so that
every id is given back as it was. A string id is kept exactly. A time is an integer, which is kept; a number
with a fraction, which is taken as seconds and stored in microseconds; or an ISO 8601 date or date and time,
by default in UTC, which is stored in microseconds. The first rows decide which of these a text column holds.
"""

# pyright: reportAttributeAccessIssue=false

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, cast

import duckdb
import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from longplay.data_shards.errors import DataError
from longplay.data_shards.readers.bad_rows import BLANK_LINE, NUM_EXAMPLES, BadRow, BadRows
from longplay.data_shards.readers.columns import Columns, find_column
from longplay.data_shards.readers.sources import MISSING, Ids, ParsedBlock
from longplay.data_shards.storage.manifest import TimeUnit

NOT_SELECTED = "not_selected"
_INTEGERS = ("TINYINT", "SMALLINT", "INTEGER", "BIGINT", "UTINYINT", "USMALLINT", "UINTEGER")
_WIDE_INTEGERS = ("UBIGINT", "HUGEINT", "UHUGEINT")
_EXACT_BELOW = {"FLOAT": 2**24, "DOUBLE": 2**53}
_NULL = ("NULL", '"NULL"')
_WHITESPACE = "E' \\t\\r\\n\\v\\f'"
_PER_SECOND: dict[TimeUnit, int] = {"s": 1, "ms": 10**3, "us": 10**6, "ns": 10**9}
_idle_databases: list[duckdb.DuckDBPyConnection] = []


@dataclass(frozen=True)
class RawTable:
    """Consecutive rows of a file, as they were read.

    Attributes:
        table: columns `c0`, `c1`, ... in the order of the header, of which those that are not needed may be
            absent. Text columns `fault` and `text`, if present, mark rows that are known to be unusable.
        where: the file and the kind of row number, for messages: `events.csv, line`.
        numbers: (rows,) int64 number of each row, counted from the first row of the block.
        num_blank: blank lines that were left out.
    """

    table: pa.Table
    where: str
    numbers: np.ndarray
    num_blank: int = 0


@contextmanager
def _database() -> Iterator[duckdb.DuckDBPyConnection]:
    """Lend a database in memory that cannot read or write files, for one thread."""
    try:
        database = _idle_databases.pop()
    except IndexError:
        database = duckdb.connect()
        database.execute("SET threads=1; SET TimeZone='UTC'")
        database.execute("SET enable_external_access=false; SET lock_configuration=true")
    try:
        yield database
    finally:
        _idle_databases.append(database)


def query(sql: str, **tables: pa.Table) -> pa.Table:
    """Run a query over Arrow tables. Thread-safe."""
    with _database() as database:
        for name, table in tables.items():
            database.register(name, table)
        try:
            return database.sql(sql).to_arrow_table()
        finally:
            for name in tables:
                database.unregister(name)


def column_types(table: pa.Table) -> dict[str, str]:
    """Return DuckDB's name of the type of each column; that of Arrow if DuckDB has no such type."""
    types = {}
    for name in table.column_names:
        try:
            (row,) = query("SELECT column_type FROM (DESCRIBE block)", block=table.select([name])).to_pylist()
            types[name] = row["column_type"]
        except duckdb.Error:
            types[name] = str(table.schema.field(name).type)
    return types


@dataclass(frozen=True)
class ColumnKinds:
    """How the columns are read, decided once for all files of a source.

    Attributes:
        user, item: `integer` or `string`.
        time: `integer`, `decimal` or `date`.
        time_unit: unit of the times that are stored; None if it is unknown.
        features: feature -> `integer` or `string`, for categorical ones.
        types: column -> type that `where` sees, for columns of text.
    """

    user: str
    item: str
    time: str
    time_unit: TimeUnit | None
    features: dict[str, str] = field(default_factory=dict)
    types: dict[str, str] = field(default_factory=dict)

    @classmethod
    def find(cls, columns: Columns, header: Sequence[str], head: pa.Table, path: object) -> ColumnKinds:
        """Decide by the types of the columns and, for text, by the first rows.

        Args:
            columns: which columns are read.
            header: names of all columns.
            head: the first rows, with the columns of `RawTable.table`.
            path: the file, for messages.

        Raises:
            DataError: a column is missing or has an unsuitable type.
        """
        types = column_types(head)
        places = find_columns(columns, header, path)
        of = {role: (f"c{at}", types[f"c{at}"]) for role, at in places.items()}
        for role, (_, dtype) in of.items():
            _check_type(role, dtype, header[places[role]], path)
        told = {"user": columns.user_type, "item": columns.item_type}
        kinds = {role: told.get(role) or _id_kind(head, *of[role]) for role in of if role != "time"}
        time = columns.time_type or "integer"
        if columns.has_time and columns.time_type is None:
            time = _time_kind(head, *of["time"], columns.time_scale)
        text = [at for at in range(len(header)) if types.get(f"c{at}") == "VARCHAR"]
        seen = (
            {header[at]: _seen_type(head, f"c{at}") for at in text}
            if columns.where and columns.typed_where
            else {}
        )
        features = {
            role.partition(":")[2]: kind for role, kind in kinds.items() if role.startswith("feature:")
        }
        unit = "index" if not columns.has_time else _unit(time, of["time"][1], columns)
        return cls(kinds["user"], kinds["item"], time, unit, features, seen)


def find_columns(columns: Columns, header: Sequence[str], path: object) -> dict[str, int]:
    """Return role -> index of its column.

    Raises:
        DataError: a column is missing.
    """
    options = {role: f"--{role}" for role in ("user", "item", "time")}
    return {
        role: find_column(name, header, options.get(role, "--features"), path)
        for role, name in columns.names().items()
    }


class RowParser:
    """Turns the raw rows of files with one header into events.

    Args:
        columns: which columns are read, and which rows are selected.
        kinds: how they are read.
        header: names of all columns.
        types: column of `RawTable.table` -> DuckDB's name of its type.
        path: the file, for messages.

    Raises:
        DataError: a column is missing, or the condition of `columns.where` is unusable.
    """

    def __init__(
        self,
        columns: Columns,
        kinds: ColumnKinds,
        header: Sequence[str],
        types: Mapping[str, str],
        path: object,
    ) -> None:
        self._columns = columns
        places = find_columns(columns, header, path)
        self._names = {role: header[at] for role, at in places.items()}
        self.needed = sorted(set(places.values())) if columns.where is None else list(range(len(header)))
        values = {}
        for role, at in places.items():
            raw, dtype = f"c{at}", types[f"c{at}"]
            name = role.partition(":")[2]
            feature = next((one for one in columns.features if one.name == name), None)
            if role == "time":
                values[role] = _time(raw, dtype, kinds.time, columns.time_scale)
            elif feature is not None and feature.kind == "float":
                number = f"TRY_CAST({raw} AS FLOAT)"
                values[role] = f"CASE WHEN isfinite({number}) THEN {number} END"
            else:
                kind = kinds.features[name] if feature else getattr(kinds, role)
                values[role] = _id(raw, dtype, kind)
        self._select = ", ".join(f'{value} AS "{role}"' for role, value in values.items())
        self._faults = self._fault_cases(places, kinds, types)
        self._seen = _seen_columns(header, kinds.types, self.needed) if columns.where else ""
        texts = [at for role, at in places.items() if types[f"c{at}"] == "VARCHAR"]
        integers = [role for role in places if getattr(kinds, role, None) == "integer"]
        as_they_are = columns.where is None and columns.has_time and columns.time_scale == 1
        self._plain = places if as_they_are and len(texts) == len(integers) == len(places) else None

    def _fault_cases(self, places: Mapping[str, int], kinds: ColumnKinds, types: Mapping[str, str]) -> str:
        """Return the SQL of (reason, text) for an unusable row, null for a usable one."""
        wanted = {
            "integer": "not_an_integer",
            "string": "missing",
            "decimal": "not_a_number",
            "date": "not_a_date",
        }
        reasons, texts = [], []
        for role, at in places.items():
            if role.startswith("feature:"):
                continue
            name = _literal(f":{self._names[role]}")
            shown = f"coalesce(c{at}::VARCHAR, '')"
            empty = f"trim({shown}, {_WHITESPACE}) IN ('', 'NaN', 'nan')"
            inexact = ""
            if types[f"c{at}"] == "FLOAT":
                inexact = f"WHEN abs(c{at}) >= {_EXACT_BELOW['FLOAT']} THEN 'not_exact' "
            reasons.append(
                f"WHEN \"{role}\" IS NULL THEN CASE WHEN {empty} THEN 'missing' {inexact}"
                f"ELSE '{wanted[getattr(kinds, role)]}' END || {name}"
            )
            texts.append(f'WHEN "{role}" IS NULL THEN {shown}')
            if role in self._columns.least:
                below = f'WHEN "{role}" < {self._columns.least[role]} THEN'
                reasons.append(f"{below} 'out_of_range' || {name}")
                texts.append(f"{below} {shown}")
        return (
            f"CASE WHEN fault IS NOT NULL THEN fault {' '.join(reasons)} END AS fault, "
            f"CASE WHEN fault IS NOT NULL THEN text {' '.join(texts)} END AS text"
        )

    def parse(self, raw: RawTable) -> ParsedBlock:
        """Return the usable events of consecutive rows, and count the other rows by reason.

        Raises:
            DataError: the condition of `where` cannot be evaluated.
        """
        table = raw.table
        if (plain := self._parse_plain(raw)) is not None:
            return plain
        if "fault" not in table.column_names:
            nothing = pa.nulls(table.num_rows, pa.string())
            table = table.append_column("fault", nothing).append_column("text", nothing)
        roles = ", ".join(f'"{role}"' for role in self._names)
        inner, selected = f"SELECT *, {self._select} FROM block", ""
        if self._columns.where is not None:
            condition = f"coalesce(({self._columns.where})::BOOLEAN, false)"
            inner = (
                f"SELECT rows.*, selected FROM ({inner}) AS rows POSITIONAL JOIN "
                f"(SELECT {condition} AS selected FROM (SELECT {self._seen} FROM block))"
            )
            selected = ", selected"
        try:
            found = query(f"SELECT {roles}{selected}, {self._faults} FROM ({inner})", block=table)
        except duckdb.Error as error:
            if self._columns.where is None:
                raise
            cause = str(error).strip().splitlines()[0]
            raise DataError(
                f"--where {self._columns.where!r} cannot be evaluated on {raw.where.rpartition(',')[0]} "
                f"({cause}); write a condition in SQL over the columns of the file, such as 'rating >= 4'"
            ) from error
        return self._account(found, raw)

    def _parse_plain(self, raw: RawTable) -> ParsedBlock | None:
        """Return the events if all columns are digits, as they mostly are, in a fifth of DuckDB's time."""
        if self._plain is None or "fault" in raw.table.column_names or not raw.table.num_rows:
            return None
        found = {}
        for role, at in self._plain.items():
            text = raw.table[f"c{at}"]
            padded = pc.and_(pc.starts_with(text, "0"), pc.greater(pc.binary_length(text), 1))
            try:
                found[role] = text.cast(pa.int64()).to_numpy()
            except pa.ArrowInvalid:
                return None
            if pc.any(padded).as_py() or found[role].min() < self._columns.least.get(role, 0):
                return None
        blank = {BLANK_LINE: raw.num_blank} if raw.num_blank else {}
        return ParsedBlock(**found, rows_in=raw.table.num_rows + raw.num_blank, bad_rows=BadRows(blank))

    def _account(self, found: pa.Table, raw: RawTable) -> ParsedBlock:
        """Separate usable rows from unusable ones and from those that are not selected."""
        bad_rows = BadRows({BLANK_LINE: raw.num_blank} if raw.num_blank else {})
        dropped: dict[str, int] = {}
        num_rows = found.num_rows
        position = np.arange(num_rows)
        if found["fault"].null_count < num_rows:
            faulty = found["fault"].is_valid()
            bad_rows = _bad_rows(found.filter(faulty), raw.numbers[faulty.to_numpy()], raw)
            found, position = found.filter(found["fault"].is_null()), position[~faulty.to_numpy()]
        if self._columns.where is not None:
            selected = found["selected"].to_numpy()
            if not selected.all():
                dropped[NOT_SELECTED] = int(np.count_nonzero(~selected))
                found, position = found.filter(found["selected"]), position[selected]
        time = _array(found["time"]) if self._columns.has_time else position
        return ParsedBlock(
            _array(found["user"]),
            _array(found["item"]),
            cast(np.ndarray, time),
            rows_in=num_rows + raw.num_blank,
            bad_rows=bad_rows,
            dropped=dropped,
            features={
                feature.name: _array(found[f"feature:{feature.name}"]) for feature in self._columns.features
            },
        )


def _bad_rows(faulty: pa.Table, numbers: np.ndarray, raw: RawTable) -> BadRows:
    """Count unusable rows by reason, and keep the first as examples."""
    counts: dict[str, int] = {BLANK_LINE: raw.num_blank} if raw.num_blank else {}
    for entry in faulty["fault"].combine_chunks().value_counts().to_pylist():
        counts[entry["values"]] = counts.get(entry["values"], 0) + entry["counts"]
    first = []
    for number, reason, text in zip(
        numbers.tolist(), faulty["fault"].to_pylist(), faulty["text"].to_pylist(), strict=True
    ):
        if reason != BLANK_LINE:
            first.append(BadRow(raw.where, number, reason, text))
        if len(first) == NUM_EXAMPLES:
            break
    return BadRows(dict(sorted(counts.items())), first)


def _array(column: pa.ChunkedArray) -> Ids:
    """Return numbers as a NumPy array, in which null is `MISSING` or NaN, and strings as an Arrow array."""
    if pa.types.is_string(column.type) or pa.types.is_large_string(column.type):
        return column.cast(pa.large_string()).combine_chunks()
    if column.null_count:
        column = column.fill_null(float("nan") if pa.types.is_floating(column.type) else MISSING)
    return column.to_numpy()


def _check_type(role: str, dtype: str, name: str, path: object) -> None:
    """Check that a column of a type can hold what the role needs.

    Raises:
        DataError: it cannot.
    """
    usable = dtype in (*_INTEGERS, *_WIDE_INTEGERS, *_EXACT_BELOW, "VARCHAR", *_NULL) or dtype.startswith(
        "DECIMAL"
    )
    if role.startswith("feature:"):
        usable |= dtype in ("BOOLEAN", "UUID") or dtype.startswith("ENUM")
    elif role == "time":
        usable |= _is_date(dtype)
    else:
        usable |= dtype == "UUID" or dtype.startswith("ENUM")
    if not usable:
        what = "a time" if role == "time" else "a feature" if role.startswith("feature:") else "ids"
        option = "--features" if role.startswith("feature:") else f"--{role}"
        raise DataError(
            f"{path}: column {name!r} holds {dtype}, not {what}; cast it, or choose another column with "
            f"{option}"
        )


def _is_date(dtype: str) -> bool:
    return dtype == "DATE" or dtype.startswith("TIMESTAMP")


def _literal(text: str) -> str:
    return "'" + text.replace("'", "''") + "'"


def _trimmed(raw: str) -> str:
    return f"trim({raw}, {_WHITESPACE})"


def _whole(raw: str, limit: int) -> str:
    """Return the SQL of a float as BIGINT, null unless it is an exact integer below `limit`."""
    return f"CASE WHEN {raw} = floor({raw}) AND abs({raw}) < {limit} THEN {raw}::BIGINT END"


def _integer(raw: str, dtype: str) -> str:
    """Return the SQL of a column as BIGINT, null where it is not an integer."""
    if dtype == "VARCHAR":
        text = _trimmed(raw)
        digits = "'[+-]?(0|[1-9][0-9]*)'"
        number = "'[+-]?(0|[1-9][0-9]*)(\\.[0-9]*)?([eE][+-]?[0-9]+)?'"
        whole = _whole(f"TRY_CAST({text} AS DOUBLE)", _EXACT_BELOW["DOUBLE"])
        return (
            f"CASE WHEN TRY_CAST({raw} AS BIGINT)::VARCHAR = {raw} THEN TRY_CAST({raw} AS BIGINT) "
            f"WHEN regexp_full_match({text}, {digits}) THEN TRY_CAST({text} AS BIGINT) "
            f"WHEN regexp_full_match({text}, {number}) THEN {whole} END"
        )
    if dtype in _EXACT_BELOW:
        return _whole(raw, _EXACT_BELOW[dtype])
    if dtype.startswith("DECIMAL"):
        return f"CASE WHEN {raw} = floor({raw}) THEN TRY_CAST({raw} AS BIGINT) END"
    return f"TRY_CAST({raw} AS BIGINT)"


def _id(raw: str, dtype: str, kind: str) -> str:
    """Return the SQL of an id: BIGINT or VARCHAR, null where it is missing or not an integer."""
    if kind == "integer":
        return _integer(raw, dtype)
    text = raw if dtype == "VARCHAR" else f"{raw}::VARCHAR"
    return f"CASE WHEN {_trimmed(text)} <> '' THEN {text} END"


def _time(raw: str, dtype: str, kind: str, scale: int) -> str:
    """Return the SQL of a time as BIGINT, null where it is unusable."""
    if _is_date(dtype):
        return f"epoch_ns({raw})" if "_NS" in dtype else f"epoch_us({raw}::TIMESTAMP)"
    if kind == "date":
        stamp = f"TRY_CAST({_trimmed(raw)} AS TIMESTAMPTZ)"
        return f"CASE WHEN isfinite({stamp}) THEN epoch_us({stamp}) END"
    if kind == "decimal" or scale > 1:
        factor = 10**6 if kind == "decimal" else scale
        number = _trimmed(raw) if dtype == "VARCHAR" else raw
        if dtype in _EXACT_BELOW:
            rounded = f"TRY_CAST(round({raw}::DOUBLE * {factor}) AS BIGINT)"
            return f"CASE WHEN abs({raw}) < {_EXACT_BELOW[dtype]} THEN {rounded} END"
        return f"TRY_CAST(round(TRY_CAST({number} AS DECIMAL(28, 9)) * {factor}) AS BIGINT)"
    return _integer(raw, dtype)


def _id_kind(head: pa.Table, raw: str, dtype: str) -> str:
    """Return `integer` if the type is a number or all of the first rows hold integers, otherwise `string`."""
    if dtype in _WIDE_INTEGERS or dtype == "VARCHAR":
        present = f"CASE WHEN {_trimmed(f'{raw}::VARCHAR')} <> '' THEN 1 END"
        sql = f"SELECT count({present}) AS present, count({_integer(raw, dtype)}) AS integers FROM block"
        row = query(sql, block=head).to_pylist()[0]
        return "integer" if row["present"] == row["integers"] else "string"
    numbers = dtype in (*_INTEGERS, *_EXACT_BELOW, *_NULL) or dtype.startswith("DECIMAL")
    return "integer" if numbers else "string"


def _time_kind(head: pa.Table, raw: str, dtype: str, scale: int) -> str:
    """Return the kind of time that most of the first rows hold; `integer` if none holds any."""
    if _is_date(dtype):
        return "date"
    kinds = ["integer"]
    if scale == 1 and dtype not in _INTEGERS:
        kinds += ["decimal", "date"] if dtype == "VARCHAR" else ["decimal"]
    counts = ", ".join(f'count({_time(raw, dtype, kind, 1)}) AS "{kind}"' for kind in kinds)
    row: dict[str, Any] = query(f"SELECT {counts} FROM block", block=head).to_pylist()[0]
    return max(kinds, key=lambda kind: row[kind])


def _unit(kind: str, dtype: str, columns: Columns) -> TimeUnit | None:
    """Return the unit of the stored times."""
    if kind != "integer":
        return "ns" if "_NS" in dtype else "us"
    if columns.time_scale == 1 or columns.time_unit is None:
        return columns.time_unit
    per_second = _PER_SECOND[columns.time_unit] * columns.time_scale
    return next((unit for unit, number in _PER_SECOND.items() if number == per_second), None)


def _seen_type(head: pa.Table, raw: str) -> str:
    """Return the type that all of the first rows of a text column fit."""
    text = f"nullif({_trimmed(raw)}, '')"
    tests = {
        "BIGINT": _integer(raw, "VARCHAR"),
        "DOUBLE": f"TRY_CAST({text} AS DOUBLE)",
        "BOOLEAN": f"TRY_CAST({text} AS BOOLEAN)",
        "TIMESTAMPTZ": f"TRY_CAST({text} AS TIMESTAMPTZ)",
    }
    counts = ", ".join(f'count({test}) AS "{name}"' for name, test in tests.items())
    row = query(f"SELECT count({text}) AS present, {counts} FROM block", block=head).to_pylist()[0]
    return next((name for name in tests if row["present"] and row[name] == row["present"]), "VARCHAR")


def _seen_columns(header: Sequence[str], types: Mapping[str, str], needed: Sequence[int]) -> str:
    """Return the SQL of the columns that `where` sees, by name. A name that occurs twice is left out."""
    lower = [name.lower() for name in header]
    seen = []
    for at in needed:
        if lower.count(lower[at]) > 1:
            continue
        raw, dtype = f"c{at}", types.get(header[at], "VARCHAR")
        typed = header[at] in types and dtype != "VARCHAR"
        value = (
            raw
            if not typed
            else _integer(raw, "VARCHAR")
            if dtype == "BIGINT"
            else f"TRY_CAST({raw} AS {dtype})"
        )
        quoted = header[at].replace('"', '""')
        seen.append(f'{value} AS "{quoted}"')
    return ", ".join(seen)
