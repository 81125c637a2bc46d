"""Parse raw columns into integers. This module alone decides which ids and times are usable.

An id or a time is a 64-bit integer, or a float below 2**53 without a fraction (`978300760.0`). A datetime
column is read as the integer it is stored as. A time with a fraction is unusable unless `time_scale` is above
1: then every time is multiplied by it and rounded, so that 1000 keeps the milliseconds of times in seconds.
"""

from __future__ import annotations

import difflib
from argparse import ArgumentParser, Namespace
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
    """The columns to read from a source.

    Attributes:
        user, item, time: names of the columns.
        time_scale: factor by which times are multiplied.
    """

    user: str = "user_id"
    item: str = "item_id"
    time: str = "timestamp"
    time_scale: int = 1

    def __post_init__(self) -> None:
        if self.time_scale < 1:
            raise DataError(f"--time-scale is {self.time_scale}, but must be at least 1")

    def names(self) -> dict[str, str]:
        """Return role -> column name."""
        return {role: getattr(self, role) for role in ROLES}


def add_column_arguments(parser: ArgumentParser) -> None:
    """Add `--user`, `--item`, `--time` and `--time-scale`."""
    default = Columns()
    for role, name in default.names().items():
        parser.add_argument(
            f"--{role}", default=name, metavar="COLUMN", help=f"column of the {role} (default: {name})"
        )
    parser.add_argument(
        "--time-scale",
        type=int,
        default=default.time_scale,
        metavar="N",
        help="multiply times by N and round: 1000 keeps the milliseconds of times in seconds with a fraction "
        "(default: 1; rows whose time has a fraction are unusable)",
    )


def columns_of(args: Namespace) -> Columns:
    """Return the columns that the arguments of `add_column_arguments` select."""
    return Columns(user=args.user, item=args.item, time=args.time, time_scale=args.time_scale)


@dataclass(frozen=True)
class RowFilter:
    """Keep only the rows whose `column` holds `value`; `true` and `false` count as 1 and 0."""

    column: str
    value: int

    @property
    def reason(self) -> str:
        """The reason for dropping a row with another value."""
        return f"not_selected:{self.column}"


@dataclass(frozen=True, kw_only=True)
class RowFormat:
    """Which columns of a row are read, and which values are usable.

    Attributes:
        columns: the columns of the user, the item and the time.
        least: role -> smallest usable number; roles without an entry have no limit.
        wanted: filters that select rows.
    """

    columns: Columns = field(default_factory=Columns)
    least: dict[str, int] = field(default_factory=dict)
    wanted: tuple[RowFilter, ...] = ()

    def names(self) -> dict[str, str]:
        """Return key in a parsed table -> column name in the source: the roles first, then the filters."""
        return {**self.columns.names(), **{f"wanted:{want.column}": want.column for want in self.wanted}}


def find_column(name: str, present: Sequence[str], option: str | None, path: Path) -> int:
    """Return the index of the column called `name`, or `name:type` as RecBole writes it.

    Args:
        name: the column to find.
        present: names of all columns.
        option: the command-line option that selects another column, for the error message.
        path: the file, for the error message.

    Raises:
        DataError: the file has no such column; the message lists its columns and the nearest one.
    """
    bases = [column.partition(":")[0] for column in present]
    for candidates in (list(present), bases):
        if name in candidates:
            return candidates.index(name)
    nearest = difflib.get_close_matches(name, bases, n=1, cutoff=0.4)
    hint = f", nearest {nearest[0]!r}" if nearest else ""
    way_out = f"choose a column with {option}" if option else "pass files of this format"
    raise DataError(f"{path}: no column {name!r} (columns: {', '.join(map(repr, present))}{hint}); {way_out}")


def _whole(value: pl.Expr) -> pl.Expr:
    """Convert Float64 to Int64 where the number is an exact integer, null elsewhere."""
    exact = value.is_finite() & (value == value.floor()) & (value.abs() < _EXACT_FLOAT)
    return pl.when(exact).then(value).otherwise(None).cast(pl.Int64, strict=False)


def _integer(role: str, dtype: pl.DataType, scale: int) -> pl.Expr:
    """Convert column `role` to Int64 times `scale`, null where the result is not a 64-bit integer."""
    column = pl.col(role)
    integer = column.cast(pl.Int64, strict=False)
    number = column.cast(pl.Float64, strict=False)
    if scale > 1:
        integer = pl.when(integer.abs() <= _MAX_INT64 // scale).then(integer * scale)
        number = (number * scale).round()
    if dtype.is_float():
        return _whole(number)
    return pl.coalesce(integer, _whole(number)) if dtype == pl.String else integer


def parse_ids(texts: Sequence[str]) -> pl.Series:
    """Return texts as Int64 ids, null where a text is not a usable id."""
    table = pl.DataFrame({"id": pl.Series(texts, dtype=pl.String).str.strip_chars()})
    return table.select(_integer("id", table.schema["id"], 1)).to_series()


def check_types(schema: dict[str, pl.DataType], names: dict[str, str], path: Path) -> None:
    """Check that the columns' types can hold ids and times.

    Raises:
        DataError: a column has another type.
    """
    for role, dtype in schema.items():
        temporal = role == "time" and dtype in (pl.Datetime, pl.Date)
        if not (dtype.is_integer() or dtype.is_float() or temporal or dtype in (pl.String, pl.Null)):
            raise DataError(
                f"{path}: column {names[role]!r} holds {dtype}, not integers; cast it, or choose another "
                f"column with --{role}"
            )


def parse_rows(table: pl.DataFrame, form: RowFormat, where: str, first_number: int) -> ParsedBlock:
    """Return the usable events of consecutive rows, and count the other rows by reason.

    Args:
        table: the columns of `form.names()`, of any type that `check_types` accepts. Optional columns
            `reason` and `text` mark rows that are known to be unusable.
        form: which columns and values are usable.
        where: the file and the kind of row number, for messages: `events.csv, line`.
        first_number: number of the first row.
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
    """Return the columns of `form.names()` as Int64, with `reason` and `text` for the unusable rows."""
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
    """Count unusable rows by `reason` and keep the first as examples."""
    counts = dict(bad.group_by("reason").len().sort("reason").iter_rows())
    faulty = bad.filter(pl.col("reason") != BLANK_LINE).head(NUM_EXAMPLES)
    rows = faulty.select("number", "reason", "text").iter_rows()
    return BadRows(counts, [BadRow(where, number, why, what) for number, why, what in rows])
