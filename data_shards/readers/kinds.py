"""Detect what the columns of a source hold, from their types or, in text, from the first rows."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import pyarrow as pa

from longplay.data_shards.errors import DataError
from longplay.data_shards.readers.columns import Columns, find_column
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
from longplay.data_shards.storage.manifest import TimeUnit

_PER_SECOND: dict[TimeUnit, int] = {"s": 1, "ms": 10**3, "us": 10**6, "ns": 10**9}


@dataclass(frozen=True)
class ColumnKinds:
    """How the columns are read, decided once for all files of a source.

    Attributes:
        user, item: `integer` or `string`.
        time: `integer`, `decimal` or `date`.
        time_unit: unit of the times that are stored; None if it is unknown.
        features: feature -> `integer` or `string`; used for categorical features only.
        types: text column -> DuckDB type in which `where` sees it, '' if its first rows are empty.
    """

    user: str
    item: str
    time: str
    time_unit: TimeUnit | None
    features: dict[str, str] = field(default_factory=dict)
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
        places = find_columns(columns, header, path)
        of = {role: (f"c{at}", types[f"c{at}"]) for role, at in places.items()}
        for role, (_, dtype) in of.items():
            _check_type(role, dtype, header[places[role]], path)
        given = {"user": columns.user_type, "item": columns.item_type}
        kinds = {
            role: given.get(role) or _id_kind(head, *of[role], is_feature=role.startswith("feature:"))
            for role in of
            if role != "time"
        }
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


def _check_type(role: str, dtype: str, name: str, path: object) -> None:
    """Check that the type of a column suits its role.

    Raises:
        DataError: it does not.
    """
    usable = dtype in (*INTEGERS, *WIDE_INTEGERS, *EXACT_BELOW, "VARCHAR", *NULL_TYPES) or dtype.startswith(
        "DECIMAL"
    )
    if role.startswith("feature:"):
        usable |= dtype in ("BOOLEAN", "UUID") or dtype.startswith("ENUM")
    elif role == "time":
        usable |= is_date(dtype)
    else:
        usable |= dtype == "UUID" or dtype.startswith("ENUM")
    if not usable:
        what = "a time" if role == "time" else "a feature" if role.startswith("feature:") else "ids"
        option = "--features" if role.startswith("feature:") else f"--{role}"
        raise DataError(
            f"{path}: column {name!r} holds {dtype}, not {what}; cast it, or choose another column with "
            f"{option}"
        )


def _id_kind(head: pa.Table, raw: str, dtype: str, *, is_feature: bool) -> str:
    """Return `integer` if the type is a number or all of the first rows hold integers, otherwise `string`.

    A feature may be a number with a fraction, such as a rating of 4.5; an id may not.
    """
    numbers = dtype in EXACT_BELOW or dtype.startswith("DECIMAL")
    if dtype in WIDE_INTEGERS or dtype == "VARCHAR" or (numbers and is_feature):
        present = f"CASE WHEN {present_sql(raw, dtype)} THEN 1 END"
        sql = f"SELECT count({present}) AS present, count({integer_sql(raw, dtype)}) AS integers FROM block"
        row = query(sql, block=head).to_pylist()[0]
        return "integer" if row["present"] == row["integers"] else "string"
    return "integer" if numbers or dtype in (*INTEGERS, *NULL_TYPES) else "string"


def _time_kind(head: pa.Table, raw: str, dtype: str, scale: int) -> str:
    """Return the kind of time that most of the first rows hold; `integer` if none holds any."""
    if is_date(dtype):
        return "date"
    kinds = ["integer"]
    if scale == 1 and dtype not in INTEGERS:
        kinds += ["decimal", "date"] if dtype == "VARCHAR" else ["decimal"]
    counts = ", ".join(f'count({time_sql(raw, dtype, kind, 1)}) AS "{kind}"' for kind in kinds)
    row: dict[str, Any] = query(f"SELECT {counts} FROM block", block=head).to_pylist()[0]
    return max(kinds, key=lambda kind: row[kind])


def _unit(kind: str, dtype: str, columns: Columns) -> TimeUnit | None:
    """Return the unit of the stored times, or None if it is unknown."""
    if kind != "integer":
        return "ns" if "_NS" in dtype else "us"
    if columns.time_scale == 1 or columns.time_unit is None:
        return columns.time_unit
    per_second = _PER_SECOND[columns.time_unit] * columns.time_scale
    return next((unit for unit, number in _PER_SECOND.items() if number == per_second), None)


def _seen_type(head: pa.Table, raw: str) -> str:
    """Return the first type below that all of the first rows of a text column fit, otherwise VARCHAR.

    If the first rows are empty, the type is ''.
    """
    text = f"nullif({trimmed(raw)}, '')"
    tests = {
        "BIGINT": integer_sql(raw, "VARCHAR"),
        "DOUBLE": f"TRY_CAST({text} AS DOUBLE)",
        "BOOLEAN": f"TRY_CAST({text} AS BOOLEAN)",
        "TIMESTAMPTZ": f"TRY_CAST({text} AS TIMESTAMPTZ)",
    }
    counts = ", ".join(f'count({test}) AS "{name}"' for name, test in tests.items())
    row = query(f"SELECT count({text}) AS present, {counts} FROM block", block=head).to_pylist()[0]
    if not row["present"]:
        return ""
    return next((name for name in tests if row[name] == row["present"]), "VARCHAR")
