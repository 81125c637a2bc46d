"""Turn raw rows into events with DuckDB, and count unusable rows by reason."""

# pyright: reportAttributeAccessIssue=false

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import cast

import duckdb
import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from longplay.data_shards.errors import DataError
from longplay.data_shards.readers.bad_rows import BLANK_LINE, NUM_EXAMPLES, BadRow, BadRows
from longplay.data_shards.readers.columns import Columns
from longplay.data_shards.readers.conditions import (
    NOT_CAST,
    SeenColumn,
    check_condition,
    is_seen,
    seen_columns,
)
from longplay.data_shards.readers.database import query
from longplay.data_shards.readers.kinds import ColumnKinds, find_columns
from longplay.data_shards.readers.sources import MISSING, Ids, ParsedBlock
from longplay.data_shards.readers.values import (
    EXACT_BELOW,
    WHITESPACE,
    float_sql,
    id_sql,
    literal,
    present_sql,
    quoted,
    time_sql,
)
from longplay.data_shards.storage.manifest import PER_SECOND

NOT_SELECTED = "not_selected"
_MAX_INT64 = np.iinfo(np.int64).max
_MIN_SECOND, _MAX_SECOND = -62_135_596_800, 253_402_300_799  # of the years 1 to 9999


@dataclass(frozen=True)
class RawTable:
    """Consecutive rows of a file, as they were read.

    Attributes:
        table: columns `c0`, `c1`, ... in the order of the header, of which those that are not needed may be
            absent. Text columns `fault` (the reason) and `text`, if present, are not null in unusable rows.
        where: the file and the kind of row number, for messages: `events.csv, line`.
        numbers: (rows,) int64 number of each row: from 1 at the first row of the block, or from 2 if the file
            has a header line.
        num_blank: blank lines that were left out.
    """

    table: pa.Table
    where: str
    numbers: np.ndarray
    num_blank: int = 0


class RowParser:
    """Turns the raw rows of a file into events.

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
        used = set() if columns.where is None else check_condition(columns.where)
        self._columns = columns
        places = find_columns(columns, header, path)
        self._header, self._roles = header, list(places)
        seen = () if columns.where is None else (at for at in range(len(header)) if is_seen(at, types))
        self.needed = sorted({*places.values(), *seen})
        values = {}
        for role, at in places.items():
            raw, dtype, kind = f"c{at}", types[f"c{at}"], kinds.of[role]
            if role == "time":
                values[role] = time_sql(raw, dtype, kind, columns.time_scale)
            else:
                values[role] = float_sql(raw) if kind == "float" else id_sql(raw, dtype, kind)
        self._select = ", ".join(f'{value} AS "{role}"' for role, value in values.items())
        self._limits = _limits(columns, kinds)
        seen = seen_columns(header, kinds.types, types, self.needed) if columns.where else []
        self._seen = ", ".join(f"{one.sql} AS {quoted(name)}" for one in seen for name in one.names)
        cast = [one for one in seen if one.is_cast and not used.isdisjoint(map(str.lower, one.names))]
        self._faults = self._fault_cases(places, kinds, types, cast)
        as_they_are = columns.where is None and columns.has_time and columns.time_scale == 1
        is_plain = [
            types[f"c{at}"] == "VARCHAR" and kinds.of[role] in ("integer", "string")
            for role, at in places.items()
        ]
        plain = {role: (at, kinds.of[role]) for role, at in places.items()}
        self._plain = plain if as_they_are and all(is_plain) and not columns.features else None

    def _fault_cases(
        self,
        places: Mapping[str, int],
        kinds: ColumnKinds,
        types: Mapping[str, str],
        cast: Sequence[SeenColumn],
    ) -> str:
        """Return the SQL of the columns `fault` (the reason) and `text`, null for a usable row.

        `cast` are the columns of text that the `where` condition uses as another type.
        """
        wanted = {
            "integer": "not_an_integer",
            "string": "missing",
            "float": "not_a_number",
            "decimal": "not_a_number",
            "date": "not_a_date",
        }
        reasons, texts = [], []

        def add(condition: str, reason: str, at: int) -> None:
            reasons.append(f"WHEN {condition} THEN {reason} || {literal(f':{self._header[at]}')}")
            texts.append(f"WHEN {condition} THEN coalesce(c{at}::VARCHAR, '')")

        for role, at in places.items():
            raw, dtype, kind = f"c{at}", types[f"c{at}"], kinds.of[role]
            present = present_sql(raw, dtype, is_number=kind != "string")
            if role.startswith("feature:"):
                add(f'"{role}" IS NULL AND {present}', f"'{wanted[kind]}'", at)
                continue
            inexact = f"abs({raw}) >= {EXACT_BELOW['FLOAT']}" if dtype == "FLOAT" else "false"
            reason = f"WHEN {inexact} THEN 'not_exact' WHEN {present} THEN '{wanted[kind]}' ELSE 'missing'"
            add(f'"{role}" IS NULL', f"CASE {reason} END", at)
            if role in self._limits:
                least, most = self._limits[role]
                add(f'"{role}" NOT BETWEEN {least} AND {most}', "'out_of_range'", at)
        for one in cast:
            present = present_sql(f"c{one.at}", "VARCHAR", is_number=True)
            add(f"{one.sql} IS NULL AND {present}", f"'{NOT_CAST[one.dtype]}'", one.at)
        return (
            f"CASE WHEN fault IS NOT NULL THEN fault {' '.join(reasons)} END AS fault, "
            f"CASE WHEN fault IS NOT NULL THEN text {' '.join(texts)} END AS text"
        )

    def parse(self, raw: RawTable) -> ParsedBlock:
        """Return the usable events of consecutive rows, and count the other rows by reason.

        Raises:
            DataError: the condition of `where` cannot be evaluated, or DuckDB cannot read a value.
        """
        table = raw.table
        if (plain := self._parse_plain(raw)) is not None:
            return plain
        if "fault" not in table.column_names:
            nothing = pa.nulls(table.num_rows, pa.string())
            table = table.append_column("fault", nothing).append_column("text", nothing)
        roles = ", ".join(f'"{role}"' for role in self._roles)
        inner = f"SELECT *, {self._select} FROM block"
        try:
            found = query(f"SELECT {roles}, {self._faults} FROM ({inner})", block=table)
        except duckdb.Error as error:
            cause = str(error).strip().splitlines()[0]
            raise DataError(
                f"{raw.where.rpartition(',')[0]}: a value cannot be read ({cause}); correct the file, or "
                "choose other columns"
            ) from error
        if self._columns.where is not None:
            found = found.append_column("selected", self._selected(table, raw.where))
        return self._account(found, raw)

    def _selected(self, table: pa.Table, where: str) -> pa.ChunkedArray:
        """Return (rows,) bool: whether each row meets the `where` condition. Null counts as false.

        The condition is evaluated in a query of its own, where only the columns of the file have names.
        """
        condition = f"coalesce(({self._columns.where}\n)::BOOLEAN, false)"  # it may end in a comment
        sql = f"SELECT {condition} AS selected FROM (SELECT {self._seen} FROM block)"
        try:
            found = query(sql, block=table)
        except duckdb.Error as error:
            cause = str(error).strip().splitlines()[0]
            raise DataError(
                f"--where {self._columns.where!r} cannot be evaluated on {where.rpartition(',')[0]} "
                f"({cause}); write a condition in SQL over the columns of the file, such as 'rating >= 4'"
            ) from error
        assert found.num_rows == table.num_rows, "the condition is not evaluated once per row"
        return found["selected"]

    def _parse_plain(self, raw: RawTable) -> ParsedBlock | None:
        """Parse strings and plain non-negative integers in a fifth of DuckDB's time.

        Return None if there are other values, or unusable ones.
        """
        if self._plain is None or "fault" in raw.table.column_names or not raw.table.num_rows:
            return None
        found = {}
        for role, (at, kind) in sorted(self._plain.items(), key=lambda plain: plain[1][1]):
            text = raw.table[f"c{at}"]
            values = _plain_strings(text) if kind == "string" else _plain_integers(text)
            if values is None:
                return None
            least, most = self._limits.get(role, (0, _MAX_INT64))
            if isinstance(values, np.ndarray) and (values.min() < max(least, 0) or values.max() > most):
                return None
            found[role] = values
        blank = {BLANK_LINE: raw.num_blank} if raw.num_blank else {}
        return ParsedBlock(**found, rows_in=raw.table.num_rows + raw.num_blank, bad_rows=BadRows(blank))

    def _account(self, found: pa.Table, raw: RawTable) -> ParsedBlock:
        """Return the usable rows that are selected, and count the others by reason."""
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


def _plain_integers(text: pa.ChunkedArray) -> np.ndarray | None:
    """Return text as (N,) int64, or None if a value is not plain digits that print as they were written."""
    padded = pc.and_(pc.starts_with(text, "0"), pc.greater(pc.binary_length(text), 1))
    try:
        values = text.cast(pa.int64())
    except pa.ArrowInvalid:
        return None
    return None if values.null_count or pc.any(padded).as_py() else values.to_numpy()


def _plain_strings(text: pa.ChunkedArray) -> pa.DictionaryArray | None:
    """Return text as it is, or None if a value is missing or blank."""
    strings = _array(text)
    blank = pc.equal(pc.utf8_trim(strings.dictionary, WHITESPACE.strip("'")), "")
    return None if strings.null_count or pc.any(blank).as_py() else strings


def _array(column: pa.ChunkedArray) -> Ids:
    """Return numbers as a NumPy array, in which null is `MISSING` or NaN, and strings as a dictionary."""
    if pa.types.is_string(column.type) or pa.types.is_large_string(column.type):
        return column.cast(pa.large_string()).combine_chunks().dictionary_encode()
    if column.null_count:
        column = column.fill_null(float("nan") if pa.types.is_floating(column.type) else MISSING)
    return column.to_numpy()


def _limits(columns: Columns, kinds: ColumnKinds) -> dict[str, tuple[int, int]]:
    """Return role -> smallest and largest usable number. A time of known unit lies in the years 1 to 9999."""
    limits = {role: (least, _MAX_INT64) for role, least in columns.least.items()}
    if kinds.time_unit in ("s", "ms", "us"):  # nanoseconds of 64 bits end in the year 2262
        per_second = PER_SECOND[kinds.time_unit]
        least = columns.least.get("time", _MIN_SECOND * per_second)
        limits["time"] = (least, (_MAX_SECOND + 1) * per_second - 1)
    return limits
