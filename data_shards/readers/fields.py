"""Raw columns -> whole numbers: the one place that decides what an id or a time may look like.

An id or a time is an integer of 64 bits, or a float without a fraction (`978300760.0`) below 2**53. A
datetime column counts as the integer it is stored as. Times with a fraction are unusable unless a
`time_scale` above 1 is given: every time is then multiplied by it and rounded, so that 1000 keeps the
milliseconds of times in seconds.
"""

from __future__ import annotations

import difflib
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import polars as pl

from longplay.data_shards.errors import DataError
from longplay.data_shards.readers.bad_rows import (
    BLANK_LINE,
    NUM_EXAMPLES,
    BadRow,
    BadRows,
    missing,
    not_an_integer,
    out_of_range,
)
from longplay.data_shards.readers.sources import ParsedBlock

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


@dataclass(frozen=True)
class RowFilter:
    """A column that must hold `value`, or the row is left out; `true` and `false` count as 1 and 0."""

    column: str
    value: int

    @property
    def reason(self) -> str:
        """Why a row of another value is dropped."""
        return f"not_selected:{self.column}"


@dataclass(frozen=True, kw_only=True)
class RowFormat:
    """What is read of a row, and what it must be to be used.

    Attributes:
        columns: the user's, item's and time's.
        least: role -> the smallest number there may be; any, if absent.
        wanted: columns by which rows are selected.
    """

    columns: Columns = field(default_factory=Columns)
    least: dict[str, int] = field(default_factory=dict)
    wanted: tuple[RowFilter, ...] = ()

    def names(self) -> dict[str, str]:
        """Key of a table's column -> name in the source: the roles, then what rows are selected by."""
        return {**self.columns.names(), **{f"wanted:{want.column}": want.column for want in self.wanted}}


def find_column(name: str, present: Sequence[str], option: str | None, path: Path) -> int:
    """The position of the column called `name`, or `name:type` as RecBole writes it; `option` names another.

    Raises:
        DataError: there is none; lists those present and the nearest.
    """
    bases = [column.partition(":")[0] for column in present]
    for candidates in (list(present), bases):
        if name in candidates:
            return candidates.index(name)
    nearest = difflib.get_close_matches(name, bases, n=1, cutoff=0.4)
    hint = f", nearest {nearest[0]!r}" if nearest else ""
    way_out = f"name the right one with {option}" if option else "pass files of the right format"
    raise DataError(f"{path}: no column {name!r} (present: {', '.join(map(repr, present))}{hint}); {way_out}")


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


def parse_rows(table: pl.DataFrame, form: RowFormat, where: str, first_number: int) -> ParsedBlock:
    """The usable events of consecutive rows, and an account of the others.

    Args:
        table: the columns of `form.names()`, of any type that `check_types` admits; `reason` and `text` may
            say which rows were found unusable already, and the row.
        where: how to name the place of a row, its number following.
        first_number: the number of the first row.
    """
    names = form.names()
    scales = {key: form.columns.time_scale if key == "time" else 1 for key in names}
    quick = table.select(
        pl.col(key).cast(pl.Int64, strict=False)
        if table.schema[key] == pl.String and scales[key] == 1
        else _integer(key, table.schema[key], scales[key])
        for key in names
    )
    in_doubt = pl.any_horizontal(
        pl.all().is_null(), *(pl.col(key) < least for key, least in form.least.items())
    )
    doubtful = quick.select(in_doubt).to_series()
    if "reason" in table.columns:
        doubtful |= table["reason"].is_not_null()
    values = {key: quick[key].fill_null(0).to_numpy() for key in names}
    bad_rows = BadRows()
    if doubtful.any():
        rows = np.flatnonzero(doubtful.to_numpy())
        careful = _parse_carefully(table.filter(doubtful), form, scales)
        good = careful["reason"].is_null()
        usable = np.ones(table.height, bool)
        usable[rows[~good.to_numpy()]] = False
        for key in names:
            values[key] = np.array(values[key])
            values[key][rows[good.to_numpy()]] = careful[key].filter(good).to_numpy()
            values[key] = values[key][usable]
        bad_rows = _account(careful.with_columns(number=pl.Series(rows + first_number)).filter(~good), where)
    dropped: dict[str, int] = {}
    for want in form.wanted:
        kept = values[f"wanted:{want.column}"] == want.value
        if not kept.all():
            dropped[want.reason] = int(np.count_nonzero(~kept))
            values = {key: column[kept] for key, column in values.items()}
    return ParsedBlock(values["user"], values["item"], values["time"], table.height, bad_rows, dropped)


def _parse_carefully(rows: pl.DataFrame, form: RowFormat, scales: dict[str, int]) -> pl.DataFrame:
    """The columns of `form.names()` as Int64, and `reason` and `text` where one is unusable and null."""
    names = form.names()
    texts = [key for key in names if rows.schema[key] == pl.String]
    rows = rows.with_columns(pl.col(key).str.strip_chars() for key in texts)
    booleans = [key for key in texts if key not in ROLES]
    words = {"true": "1", "false": "0"}
    rows = rows.with_columns(
        pl.col(key).str.to_lowercase().replace_strict(words, default=pl.col(key)) for key in booleans
    )
    parsed = {key: _integer(key, rows.schema[key], scales[key]) for key in names}
    reason, text = pl.lit(None, pl.String), pl.lit(None, pl.String)
    if "reason" in rows.columns:
        reason, text = pl.col("reason"), pl.when(pl.col("reason").is_not_null()).then(pl.col("text"))
    for key, name in names.items():
        shown = pl.col(key).cast(pl.String).fill_null("")
        empty = (shown == "") | (shown == "NaN")
        fault = pl.when(empty).then(pl.lit(missing(name))).otherwise(pl.lit(not_an_integer(name)))
        fault = pl.when(parsed[key].is_null()).then(fault)
        if key in form.least:
            below = pl.when(parsed[key] < form.least[key]).then(pl.lit(out_of_range(name)))
            fault = pl.coalesce(fault, below)
        reason, text = pl.coalesce(reason, fault), pl.coalesce(text, pl.when(fault.is_not_null()).then(shown))
    return rows.select(*(parsed[key].alias(key) for key in names), reason=reason, text=text)


def _account(bad: pl.DataFrame, where: str) -> BadRows:
    """Counts rows by `reason` and remembers the first, with their `number` and `text`."""
    counts = dict(bad.group_by("reason").len().sort("reason").iter_rows())
    faulty = bad.filter(pl.col("reason") != BLANK_LINE).head(NUM_EXAMPLES)
    rows = faulty.select("number", "reason", "text").iter_rows()
    return BadRows(counts, [BadRow(where, number, why, what) for number, why, what in rows])
