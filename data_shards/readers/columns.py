"""Select the columns of a source that hold the user, the item, the time and the features."""

from __future__ import annotations

import difflib
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal

from longplay.data_shards.errors import DataError
from longplay.data_shards.storage.manifest import TimeUnit

IdType = Literal["integer", "string"]
TimeType = Literal["integer", "decimal", "date"]
NO_TIME = "none"
NUMERIC_UNITS: tuple[TimeUnit, ...] = ("s", "ms", "us", "ns")
_FEATURE = re.compile(r"([a-z][a-z0-9_]*)(?:=(.+))?:(categorical|float)")
_TAKEN = ("user", "item", "time")


@dataclass(frozen=True)
class FeatureColumn:
    """An event feature: its name, its kind (`categorical` or `float`), and its column."""

    name: str
    kind: str
    column: str

    def __str__(self) -> str:
        source = "" if self.column == self.name else f"={self.column}"
        return f"{self.name}{source}:{self.kind}"


def parse_features(text: str) -> tuple[FeatureColumn, ...]:
    """Parse `name:kind,name=COLUMN:kind,...`.

    Raises:
        DataError: the text has another form, a name occurs twice, or a name is `user`, `item` or `time`.
    """
    features = []
    for part in text.split(","):
        match = _FEATURE.fullmatch(part.strip())
        if match is None:
            raise DataError(
                f"--features holds {part.strip()!r}, but must be a list such as "
                "genre:categorical,price:float; write name=COLUMN:kind for a column whose name contains "
                "characters other than a-z, 0-9 and _"
            )
        if match[1] in _TAKEN:
            raise DataError(
                f"--features holds {match[1]!r}, which is a column of every dataset; give it another name: "
                f"{match[1]}_1={match[2] or match[1]}:{match[3]}"
            )
        features.append(FeatureColumn(match[1], match[3], match[2] or match[1]))
    names = [feature.name for feature in features]
    for name in names:
        if names.count(name) > 1:
            raise DataError(f"--features holds {name!r} twice; give each feature once")
    return tuple(features)


@dataclass(frozen=True, kw_only=True)
class Columns:
    """The columns to read from a source.

    Attributes:
        user, item: names of the columns; numbers from 1 in a file without a header.
        time: name of the column; `none`: the number of the row in the source is the time.
        user_type, item_type: type of the ids; None: the type of the column, which in text is
            detected from the first rows: `integer` if all hold integers.
        time_type: `integer`, `decimal` (seconds) or `date`; None: the type of the column, which in text is
            detected from the first rows.
        time_unit: unit of integer times: `s`, `ms`, `us` or `ns`; None: unknown.
        time_scale: factor by which times that are numbers are multiplied.
        where: condition in SQL that selects rows; None: all.
        typed_where: in text, `where` sees a column in the type that fits its first rows: BIGINT, DOUBLE,
            BOOLEAN, TIMESTAMPTZ or VARCHAR. If false, it sees VARCHAR.
        features: event features.
        least: role -> smallest usable number; roles without an entry have no limit.
    """

    user: str = "user_id"
    item: str = "item_id"
    time: str = "timestamp"
    user_type: IdType | None = None
    item_type: IdType | None = None
    time_type: TimeType | None = None
    time_unit: TimeUnit | None = None
    time_scale: int = 1
    where: str | None = None
    typed_where: bool = True
    features: tuple[FeatureColumn, ...] = ()
    least: Mapping[str, int] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if not 1 <= self.time_scale <= 10**9:
            raise DataError(f"--time-scale is {self.time_scale}, but must be between 1 and 1e9")
        if self.time_scale > 1 and self.time_type in ("decimal", "date"):
            raise DataError(
                f"--time-scale {self.time_scale} excludes --time-type {self.time_type}, whose times are "
                "stored in microseconds; leave one out"
            )

    @property
    def has_time(self) -> bool:
        """Whether a column holds the time."""
        return self.time != NO_TIME

    def names(self) -> dict[str, str]:
        """Return role -> name of its column. The role of a feature is `feature:NAME`."""
        times = {"time": self.time} if self.has_time else {}
        features = {f"feature:{feature.name}": feature.column for feature in self.features}
        return {"user": self.user, "item": self.item, **times, **features}


def find_column(name: str, present: Sequence[str], option: str | None, path: object) -> int:
    """Return the index of the column called `name`, or `name:type` as RecBole writes it.

    Args:
        name: the column to find.
        present: names of all columns.
        option: the command-line option that selects another column, for the error message.
        path: the file, for the error message.

    Raises:
        DataError: the file has no such column, or several; without one, the message lists the columns and the
            most similar name.
    """
    bases = [column.partition(":")[0] for column in present]
    for candidates in (list(present), bases):
        if candidates.count(name) > 1:
            raise DataError(f"{path}: column {name!r} occurs {candidates.count(name)} times; rename one")
        if name in candidates:
            return candidates.index(name)
    nearest = difflib.get_close_matches(name, bases, n=1, cutoff=0.4)
    hint = f"; nearest {nearest[0]!r}" if nearest else ""
    way_out = f"choose a column with {option}" if option else "pass files of this format"
    if name.isdigit() and list(present[:1]) != ["1"]:
        way_out += ", or pass --header none to number the columns of a file without a header"
    shown = ", ".join(map(repr, present[:50])) + (", ..." if len(present) > 50 else "")
    raise DataError(f"{path}: no column {name!r} (columns: {shown}{hint}); {way_out}")
