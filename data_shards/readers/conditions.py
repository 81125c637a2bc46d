"""Check the SQL conditions with which users select rows."""

from __future__ import annotations

import json
from typing import Any

from longplay.data_shards.errors import DataError
from longplay.data_shards.readers.database import query
from longplay.data_shards.readers.values import literal

_UNFIT_FUNCTIONS = """
    SELECT function_name AS name FROM duckdb_functions() GROUP BY name
    HAVING bool_or(stability = 'VOLATILE') OR NOT bool_or(function_type IN ('scalar', 'macro'))
"""
_CLOCK_KEYWORDS = {"current_date", "current_time", "current_timestamp", "localtime", "localtimestamp"}
_CLOCK = {
    *("age", "now", "today", "current_localtime", "current_localtimestamp", "get_current_time"),
    *("get_current_timestamp", "transaction_timestamp", *_CLOCK_KEYWORDS),
}


def check_condition(condition: str) -> None:
    """Check that a `where` condition is deterministic and depends on the values of one row only.

    Raises:
        DataError: it is not one SQL expression, or uses other rows, a query, the clock or random numbers.
    """
    (row,) = query(
        f"SELECT json_serialize_sql({literal(f'SELECT {condition}')})::VARCHAR AS tree"
    ).to_pylist()
    tree = json.loads(row["tree"])
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


def _unfit(tree: Any, functions: set[str]) -> str | None:
    """Return the first part of a condition that does not depend on one row alone; None if there is none."""
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
