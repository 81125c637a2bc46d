"""Raw columns -> whole numbers: the one place that decides what an id or a time may look like.

An id or a time is an integer of 64 bits, or a float without a fraction (`978300760.0`) below 2**53. A
datetime column counts as the integer it is stored as. Times with a fraction are unusable unless a
`time_scale` above 1 is given: every time is then multiplied by it and rounded, so that 1000 keeps the
milliseconds of times in seconds.
"""

from __future__ import annotations

import difflib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import polars as pl

from longplay.data_shards.bad_rows import BLANK_LINE, BadRow, BadRows, missing, not_an_integer
from longplay.data_shards.errors import DataError

ROLES = ("user", "item", "time")
_EXACT_FLOAT = float(2**53)
_MAX_INT64 = 2**63 - 1


@dataclass(frozen=True, kw_only=True)
class Columns:
    """Names of the three columns read from a source, and the scale of its times."""

    user: str = "user_id"
    item: str = "item_id"
    time: str = "timestamp"
    time_scale: int = 1

    def __post_init__(self) -> None:
        if self.time_scale < 1:
            raise DataError(f"--time-scale is {self.time_scale}, it must be at least 1")

    def names(self) -> dict[str, str]:
        """role -> column name."""
        return {role: getattr(self, role) for role in ROLES}


def find_column(name: str, present: Sequence[str], role: str, path: Path) -> int:
    """The position of the column called `name`, or `name:type` as RecBole writes it.

    Raises:
        DataError: there is none; lists those present and the nearest.
    """
    bases = [column.partition(":")[0] for column in present]
    for candidates in (list(present), bases):
        if name in candidates:
            return candidates.index(name)
    nearest = difflib.get_close_matches(name, bases, n=1, cutoff=0.4)
    hint = f", nearest {nearest[0]!r}" if nearest else ""
    raise DataError(
        f"{path}: no column {name!r} (present: {', '.join(map(repr, present))}{hint}); "
        f"name the right one with --{role}"
    )


def _whole(value: pl.Expr) -> pl.Expr:
    """Float64 -> Int64 where it has no fraction and is exact, null elsewhere."""
    exact = value.is_finite() & (value == value.floor()) & (value.abs() < _EXACT_FLOAT)
    return pl.when(exact).then(value).otherwise(None).cast(pl.Int64, strict=False)


def _integer(role: str, dtype: pl.DataType, scale: int) -> pl.Expr:
    """Column `role` of type `dtype` -> Int64 times `scale`, null where it is no whole number of 64 bits."""
    column = pl.col(role)
    integer = column.cast(pl.Int64, strict=False)
    number = column.cast(pl.Float64, strict=False)
    if scale > 1:
        integer = pl.when(integer.abs() <= _MAX_INT64 // scale).then(integer * scale)
        number = (number * scale).round()
    if dtype.is_float():
        return _whole(number)
    return pl.coalesce(integer, _whole(number)) if dtype == pl.String else integer


def check_types(schema: dict[str, pl.DataType], names: dict[str, str], path: Path) -> None:
    """Refuses columns that can hold no ids or times at all.

    Raises:
        DataError: such a column, by name.
    """
    for role, dtype in schema.items():
        temporal = role == "time" and dtype in (pl.Datetime, pl.Date)
        if not (dtype.is_integer() or dtype.is_float() or temporal or dtype in (pl.String, pl.Null)):
            raise DataError(
                f"{path}: column {names[role]!r} holds {dtype}, not integers; cast it, or name another with "
                f"--{role}"
            )


def usable_events(raw: pl.DataFrame, columns: Columns, where: str, bad_rows: BadRows) -> pl.DataFrame:
    """The events of the usable rows of one block; the others are entered into `bad_rows`.

    Args:
        raw: columns `user`, `item`, `time` of any type that `check_types` admits; `number`, the line or row
            number a reader of the file would count; `reason`, null unless the row was found unusable already;
            `text`, the row.
        columns: the names of the three columns in the source, for the reasons.
        where: how to name the place of a row, its number following.

    Returns:
        `user`, `item`, `time` Int64, in the order of `raw`.
    """
    names = columns.names()
    raw = raw.with_columns(pl.col(role).str.strip_chars() for role in ROLES if raw.schema[role] == pl.String)
    parsed = {
        role: _integer(role, raw.schema[role], columns.time_scale if role == "time" else 1) for role in ROLES
    }
    reason, text = pl.col("reason"), pl.when(pl.col("reason").is_not_null()).then(pl.col("text"))
    for role in ROLES:
        shown = pl.col(role).cast(pl.String).fill_null("")
        empty = (shown == "") | (shown == "NaN")
        fault = (
            pl.when(empty).then(pl.lit(missing(names[role]))).otherwise(pl.lit(not_an_integer(names[role])))
        )
        reason = pl.coalesce(reason, pl.when(parsed[role].is_null()).then(fault))
        text = pl.coalesce(text, pl.when(parsed[role].is_null()).then(shown))
    frame = raw.select("number", *(parsed[role].alias(role) for role in ROLES), reason=reason, text=text)
    bad = frame.filter(pl.col("reason").is_not_null())
    if bad.height:
        counts = dict(bad.group_by("reason").len().sort("reason").iter_rows())
        faulty = bad.filter(pl.col("reason") != BLANK_LINE).head(bad_rows.num_kept)
        rows = faulty.select("number", "reason", "text").iter_rows()
        bad_rows.add(counts, [BadRow(f"{where} {number}", why, what) for number, why, what in rows])
    return frame.filter(pl.col("reason").is_null()).select(ROLES)
