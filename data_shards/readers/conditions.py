"""The SQL conditions with which users select rows: which are allowed, and which columns they see."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from longplay.data_shards.errors import DataError
from longplay.data_shards.readers.database import query
from longplay.data_shards.readers.values import EXACT_BELOW, integer_sql, literal

_UNFIT_FUNCTIONS = """
    SELECT function_name AS name FROM duckdb_functions() GROUP BY name
    HAVING bool_or(stability = 'VOLATILE') OR NOT bool_or(function_type IN ('scalar', 'macro'))
"""
_CLOCK_KEYWORDS = {"current_date", "current_time", "current_timestamp", "localtime", "localtimestamp"}
_CLOCK = {
    *("age", "now", "today", "current_localtime", "current_localtimestamp", "get_current_time"),
    *("get_current_timestamp", "transaction_timestamp", *_CLOCK_KEYWORDS),
}

NOT_CAST = {
    "BIGINT": "not_an_integer",
    "DOUBLE": "not_a_number",
    "BOOLEAN": "not_a_boolean",
    "TIMESTAMPTZ": "not_a_date",
}
"""Type in which a condition sees text -> reason for which a row with another value is unusable."""


def check_condition(condition: str) -> set[str]:
    """Check that a `where` condition is deterministic and depends on the values of one row only.

    Returns:
        The names of the columns that it uses, in lower case.

    Raises:
        DataError: it is not one SQL expression, or uses other rows, a query, the clock or random numbers.
    """
    serialized = query(f"SELECT json_serialize_sql({literal(f'SELECT {condition}')})::VARCHAR AS tree")
    tree = json.loads(serialized["tree"][0].as_py())
    if tree["error"] or len(tree["statements"]) != 1:
        cause = tree.get("error_message", "several statements")
        raise DataError(
            f"--where {condition!r} is not a condition in SQL ({cause}); write one over the columns of the "
            "file, such as 'rating >= 4'"
        )
    node = tree["statements"][0]["node"]
    functions = {row["name"] for row in query(_UNFIT_FUNCTIONS).to_pylist()} | _CLOCK
    unfit = _unfit(node["select_list"], functions)
    if unfit is None and (len(node["select_list"]) != 1 or node["from_table"]["type"] != "EMPTY"):
        unfit = "a query"
    if unfit is not None:
        raise DataError(
            f"--where {condition!r} uses {unfit}; write a condition that depends only on the columns of one "
            "row, such as 'rating >= 4'"
        )
    return _columns(tree)


def _columns(tree: Any) -> set[str]:
    """Return the names of the columns in a syntax tree, in lower case."""
    if isinstance(tree, list):
        return set().union(*map(_columns, tree))
    if not isinstance(tree, dict):
        return set()
    own = {tree["column_names"][-1].lower()} if tree.get("class") == "COLUMN_REF" else set()
    return own | _columns(list(tree.values()))


def _unfit(tree: Any, functions: set[str]) -> str | None:
    """Return the first part of a condition that depends on more than one row's values, or None."""
    if isinstance(tree, list):
        return next((found for one in tree if (found := _unfit(one, functions))), None)
    if not isinstance(tree, dict):
        return None
    if tree.get("class") == "COLUMN_REF" and tree["column_names"][-1].lower() in _CLOCK_KEYWORDS:
        return tree["column_names"][-1]
    if tree.get("class") in ("WINDOW", "SUBQUERY", "STAR"):
        return {"WINDOW": "a window", "SUBQUERY": "a query", "STAR": "*"}[tree["class"]]
    name = tree.get("function_name", "").lower()
    if name in functions:
        return f"{name}(), which depends on more than the row"
    return _unfit(list(tree.values()), functions)


def is_seen(at: int, types: Mapping[str, str]) -> bool:
    """Return whether DuckDB has the type of a column, and its name occurs once."""
    return not types.get(f"c{at}", "unknown")[0].islower()


@dataclass(frozen=True)
class SeenColumn:
    """A column as `where` sees it.

    Attributes:
        at: its index.
        dtype: its type.
        is_cast: the column holds text, and `dtype` is another type.
        sql: its value, null where text is not of the type.
        names: its names.
    """

    at: int
    dtype: str
    is_cast: bool
    sql: str
    names: list[str]


def seen_columns(
    header: Sequence[str], seen: Mapping[str, str], types: Mapping[str, str], needed: Sequence[int]
) -> list[SeenColumn]:
    """Return the columns that `where` sees. NaN is null, as in a comparison in Python.

    A column `rating:float` of RecBole is `rating` too. A name that is empty or occurs twice is left out.
    """
    names = {at: dict.fromkeys((header[at], header[at].partition(":")[0])) for at in needed}
    lower = [name.lower() for of_column in names.values() for name in of_column]
    columns = []
    for at in needed:
        value, dtype = f"c{at}", seen.get(header[at]) or types[f"c{at}"]
        is_cast = dtype != types[f"c{at}"]
        if is_cast:
            value = integer_sql(value, "VARCHAR") if dtype == "BIGINT" else f"TRY_CAST({value} AS {dtype})"
        if dtype in EXACT_BELOW:
            value = f"nullif({value}, 'NaN'::{dtype})"
        usable = [name for name in names[at] if name and lower.count(name.lower()) == 1]
        columns.append(SeenColumn(at, dtype, is_cast, value, usable))
    return columns
