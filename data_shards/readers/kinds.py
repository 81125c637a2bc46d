"""Detect what the columns of a source hold, from their types or, in text, from the first rows."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace

import pyarrow as pa

from longplay.data_shards.errors import DataError
from longplay.data_shards.readers.columns import NUMERIC_UNITS, Columns, find_column
from longplay.data_shards.readers.database import column_types, query
from longplay.data_shards.readers.values import (
    EXACT_BELOW,
    INTEGERS,
    NULL_TYPES,
    WIDE_INTEGERS,
    integer_sql,
    is_date,
    present_sql,
    time_sql,
    trimmed,
)
from longplay.data_shards.storage.manifest import PER_SECOND, TimeUnit

_OPTIONS = {role: f"--{role}" for role in ("user", "item", "time")}


@dataclass(frozen=True)
class ColumnKinds:
    """How the columns of one file are read, or those of all files of a source.

    Attributes:
        of: role -> kind: `integer` or `string` for ids and categorical features; `float` for other features;
            `integer`, `decimal` or `date` for the time; '' if the first rows of the file have no value.
        time_unit: unit of the times that are stored; None if it is unknown.
        types: text column -> DuckDB type in which `where` sees it, '' if the first rows have no value.
    """

    of: dict[str, str]
    time_unit: TimeUnit | None
    types: dict[str, str] = field(default_factory=dict)

    @classmethod
    def find(cls, columns: Columns, header: Sequence[str], head: pa.Table, path: object) -> ColumnKinds:
        """Decide from the types of the columns and, for text, from the first rows.

        Args:
            columns: which columns are read.
            header: names of all columns.
            head: the first rows, with the columns of `RawTable.table`.
            path: the file, for messages.

        Raises:
            DataError: a column is missing or has an unsuitable type.
        """
        types = column_types(head)
        floats = {f"feature:{feature.name}" for feature in columns.features if feature.kind == "float"}
        given = {"user": columns.user_type, "item": columns.item_type, "time": columns.time_type}
        kinds: dict[str, str] = {}
        unit: TimeUnit | None = "index"
        for role, at in find_columns(columns, header, path).items():
            raw, dtype = f"c{at}", types[f"c{at}"]
            _check_type(role, dtype, header[at], path)
            if role in floats:
                kinds[role] = "float"
            elif role == "time":
                kinds[role] = given[role] or time_kind(head, raw, dtype, columns.time_scale)
                unit = stored_unit(kinds[role], dtype, columns)
            else:
                kinds[role] = given.get(role) or _id_kind(head, raw, dtype, role)
        seen = {}
        if columns.where and columns.typed_where:
            text = [at for at in range(len(header)) if types.get(f"c{at}") == "VARCHAR"]
            seen = {header[at]: _seen_type(head, f"c{at}") for at in text}
        return cls(kinds, unit, seen)

    def merged(self, other: ColumnKinds, *, is_text: bool) -> ColumnKinds | None:
        """Return the kinds by which two files can be read; None if they are too different.

        In text, a column that holds strings in one file is read as strings from both, and times that have a
        fraction in one file are read as numbers with a fraction from both.
        """
        of = {}
        for role, kind in self.of.items():
            both = {kind, other.of[role]} - {""}
            if is_text and len(both) == 2 and "date" not in both:
                both -= {"integer"}
            if len(both) > 1:
                return None
            of[role] = "".join(both)
        timed = [kinds for kinds in (self, other) if kinds.of.get("time") == of.get("time")]
        if timed[0].time_unit != timed[-1].time_unit:
            return None
        types = {}
        for name, found in self.types.items():
            seen = {found, other.types.get(name, "")} - {""}
            types[name] = "VARCHAR" if len(seen) > 1 else "".join(seen)
        return ColumnKinds(of, timed[0].time_unit, types)

    def completed(self) -> ColumnKinds:
        """Return the kinds with `integer` for the columns that have no value."""
        return replace(self, of={role: kind or "integer" for role, kind in self.of.items()})

    def difference(self, other: ColumnKinds) -> str:
        """Return how the kinds of another file differ, for a message."""
        for role, kind in self.of.items():
            if kind != other.of[role]:
                name = role.replace(":", " ")
                return f"the {name} is {kind} in the first and {other.of[role]} in the second"
        units = [kinds.time_unit or "an unknown unit" for kinds in (self, other)]
        return f"times are in {units[0]} in the first and in {units[1]} in the second"


def find_columns(columns: Columns, header: Sequence[str], path: object) -> dict[str, int]:
    """Return role -> index of its column.

    Raises:
        DataError: a column is missing.
    """
    return {
        role: find_column(name, header, _OPTIONS.get(role, "--features"), path)
        for role, name in columns.names().items()
    }


def _check_type(role: str, dtype: str, name: str, path: object) -> None:
    """Check that the type of a column suits its role.

    Raises:
        DataError: it does not.
    """
    usable = dtype in (*INTEGERS, *WIDE_INTEGERS, *EXACT_BELOW, "VARCHAR", *NULL_TYPES)
    usable |= dtype.startswith("DECIMAL")
    if role == "time":
        usable |= is_date(dtype)
    else:
        usable |= dtype == "UUID" or dtype.startswith("ENUM") or (dtype == "BOOLEAN" and role not in _OPTIONS)
    if not usable:
        what = {"user": "ids", "item": "ids", "time": "a time"}.get(role, "a feature")
        raise DataError(
            f"{path}: column {name!r} holds {dtype}, not {what}; cast it, or choose another column with "
            f"{_OPTIONS.get(role, '--features')}"
        )


def _id_kind(head: pa.Table, raw: str, dtype: str, role: str) -> str:
    """Return `integer` if the type is a number or all of the first rows hold integers, otherwise `string`.

    A feature may be a number with a fraction, such as a rating of 4.5; an id may not.
    """
    if dtype in INTEGERS:
        return "integer"
    is_number = dtype in EXACT_BELOW or dtype.startswith("DECIMAL")
    if not (is_number or dtype in (*WIDE_INTEGERS, "VARCHAR", *NULL_TYPES)):
        return "string"
    present = f"count_if({present_sql(raw, dtype, is_number=True)})"
    row = _counts(head, raw, present=present, integers=f"count({integer_sql(raw, dtype)})")
    if not row["present"]:
        return ""
    is_id_number = is_number and role in _OPTIONS
    return "integer" if is_id_number or row["present"] == row["integers"] else "string"


def time_kind(head: pa.Table, raw: str, dtype: str, scale: int) -> str:
    """Return the kind of time that most of the first rows hold; '' if they hold nothing.

    Text that is not a time is `date`.
    """
    if is_date(dtype):
        return "date"
    kinds = ["integer"]
    if scale == 1 and dtype not in INTEGERS:
        kinds += ["decimal", "date"] if dtype == "VARCHAR" else ["decimal"]
    found = _counts(head, raw, **{kind: f"count({time_sql(raw, dtype, kind, 1)})" for kind in kinds})
    if not any(found.values()):
        counts = _counts(head, raw, present=f"count_if({present_sql(raw, dtype, is_number=True)})")
        return kinds[-1] if counts["present"] else ""
    return max(kinds, key=lambda kind: found[kind])


def _counts(head: pa.Table, raw: str, **counts: str) -> dict[str, int]:
    """Return aggregates of a column by name. DuckDB may not have the types of the others."""
    select = ", ".join(f"{count} AS {name}" for name, count in counts.items())
    return query(f"SELECT {select} FROM block", block=head.select([raw])).to_pylist()[0]


def stored_unit(kind: str, dtype: str, columns: Columns) -> TimeUnit | None:
    """Return the unit of the stored times, or None if it is unknown."""
    if kind in ("decimal", "date"):
        return "ns" if "_NS" in dtype else "us"
    if columns.time_scale == 1 or columns.time_unit is None:
        return columns.time_unit
    per_second = PER_SECOND[columns.time_unit] * columns.time_scale
    return next((unit for unit in NUMERIC_UNITS if PER_SECOND[unit] == per_second), None)


def _seen_type(head: pa.Table, raw: str) -> str:
    """Return the first type below that all of the first rows of a text column fit, otherwise VARCHAR.

    If the first rows have no value, the type is ''.
    """
    present = present_sql(raw, "VARCHAR", is_number=True)
    tests = {"BIGINT": integer_sql(raw, "VARCHAR")}
    tests |= {name: f"TRY_CAST({trimmed(raw)} AS {name})" for name in ("DOUBLE", "BOOLEAN", "TIMESTAMPTZ")}
    counts = {name: f"count(CASE WHEN {present} THEN {test} END)" for name, test in tests.items()}
    row = _counts(head, raw, present=f"count_if({present})", **counts)
    if not row["present"]:
        return ""
    return next((name for name in tests if row[name] == row["present"]), "VARCHAR")
