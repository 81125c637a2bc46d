"""Build the SQL that reads ids and times. This module alone decides which values are usable.

An integer is a 64-bit integer, or a float without a fraction (`978300760.0`) below the limit up to which
its type is exact: 2**53, or 2**24 for 32 bits. Text is an integer only if it has no leading zeros, so that
every id is printed as it was written. A string id is kept exactly. A time is an integer, which is kept; a
number with a fraction, which is taken as seconds and stored in microseconds; or an ISO 8601 date or date
and time, by default in UTC, which is stored in microseconds. The first rows decide which of these a text
column holds.
"""

from __future__ import annotations

INTEGERS = ("TINYINT", "SMALLINT", "INTEGER", "BIGINT", "UTINYINT", "USMALLINT", "UINTEGER")
WIDE_INTEGERS = ("UBIGINT", "HUGEINT", "UHUGEINT")
EXACT_BELOW = {"FLOAT": 2**24, "DOUBLE": 2**53}
"""Below these numbers, every integer is exact in the type."""
NULL_TYPES = ("NULL", '"NULL"')
_NULL_TEXTS = ("", "NaN", "nan", "NA", "N/A", "<NA>", "NULL", "null", "None", "\\N")
"""Texts that stand for a missing number or time. As a string id, each but the first is kept."""
WHITESPACE = "' \t\r\n\v\f'"  # no escapes: to DuckDB, E'\v' is the letter v


def is_date(dtype: str) -> bool:
    """Return whether a type is a date or a timestamp."""
    return dtype == "DATE" or dtype.startswith("TIMESTAMP")


def literal(text: str) -> str:
    """Return a string as an SQL literal."""
    return "'" + text.replace("'", "''") + "'"


def quoted(name: str) -> str:
    """Return the name of a column as an SQL identifier."""
    return '"' + name.replace('"', '""') + '"'


def trimmed(raw: str) -> str:
    """Return the SQL that removes white space from both ends of a text."""
    return f"trim({raw}, {WHITESPACE})"


def _whole_sql(raw: str, limit: int) -> str:
    """Return the SQL of a float as BIGINT, null unless it is an exact integer below `limit`."""
    return f"CASE WHEN {raw} = floor({raw}) AND abs({raw}) < {limit} THEN {raw}::BIGINT END"


def integer_sql(raw: str, dtype: str, *, exponents: bool = False) -> str:
    """Return the SQL of a column as BIGINT, null where it is not an integer.

    Args:
        raw: the column.
        dtype: its type in DuckDB.
        exponents: accept text such as 1.5e9, +5 or 0829 too. Used for times only: as an id, it would be
            printed as another text.
    """
    if dtype == "VARCHAR":
        text = trimmed(raw)
        whole = "[+-]?[0-9]+" if exponents else "(0|-?[1-9][0-9]*)"
        fraction = "([.][0-9]{0,15})?([eE][+-]?[0-9]+)?" if exponents else "[.]0*"
        digits, number = f"'{whole}'", f"'{whole}{fraction}'"
        whole = _whole_sql(f"TRY_CAST({text} AS DOUBLE)", EXACT_BELOW["DOUBLE"])
        return (
            f"CASE WHEN TRY_CAST({raw} AS BIGINT)::VARCHAR = {raw} THEN TRY_CAST({raw} AS BIGINT) "
            f"WHEN regexp_full_match({text}, {digits}) THEN TRY_CAST({text} AS BIGINT) "
            f"WHEN regexp_full_match({text}, {number}) THEN {whole} END"
        )
    if dtype in EXACT_BELOW:
        return _whole_sql(raw, EXACT_BELOW[dtype])
    if dtype.startswith("DECIMAL"):
        return f"CASE WHEN {raw} = floor({raw}) THEN TRY_CAST({raw} AS BIGINT) END"
    return f"TRY_CAST({raw} AS BIGINT)"


def id_sql(raw: str, dtype: str, kind: str) -> str:
    """Return the SQL of an id: BIGINT or VARCHAR, null where it is missing or not an integer."""
    if kind == "integer":
        return integer_sql(raw, dtype)
    return f"CASE WHEN {present_sql(raw, dtype)} THEN {raw}::VARCHAR END"


def present_sql(raw: str, dtype: str, *, is_number: bool = False) -> str:
    """Return the SQL condition that a value is not null, blank or NaN. Null counts as false.

    Args:
        raw: the column.
        dtype: its type in DuckDB.
        is_number: a number or a time is expected: texts such as NULL and NaN stand for a missing one.
    """
    if dtype in EXACT_BELOW:
        return f"NOT isnan({raw})"
    absent = ", ".join(map(literal, _NULL_TEXTS)) if is_number else "''"
    return f"{trimmed(f'{raw}::VARCHAR')} NOT IN ({absent})"


def float_sql(raw: str) -> str:
    """Return the SQL of a column as FLOAT, null where it is not a finite number."""
    number = f"TRY_CAST({raw} AS FLOAT)"
    return f"CASE WHEN isfinite({number}) THEN {number} END"


def time_sql(raw: str, dtype: str, kind: str, scale: int) -> str:
    """Return the SQL of a time as BIGINT, null where it is unusable."""
    if is_date(dtype):
        return f"epoch_ns({raw})" if "_NS" in dtype else f"epoch_us(TRY_CAST({raw} AS TIMESTAMP))"
    if kind == "date":
        stamp = f"TRY_CAST({trimmed(raw)} AS TIMESTAMPTZ)"
        return f"CASE WHEN isfinite({stamp}) THEN epoch_us({stamp}) END"
    if kind == "decimal" or scale > 1:
        factor = 10**6 if kind == "decimal" else scale
        number = trimmed(raw) if dtype == "VARCHAR" else raw
        if dtype in EXACT_BELOW:
            rounded = f"TRY_CAST(round({raw}::DOUBLE * {factor}) AS BIGINT)"
            return f"CASE WHEN abs({raw}) < {EXACT_BELOW[dtype]} THEN {rounded} END"
        return f"TRY_CAST(round(TRY_CAST({number} AS DECIMAL(28, 9)) * {factor}) AS BIGINT)"
    return integer_sql(raw, dtype, exponents=True)
