"""The account of source rows that could not be used: counted by reason, the first few remembered."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass, field
from typing import Any

from longplay.data_shards.errors import DataError

BLANK_LINE = "blank_line"
TOO_FEW_COLUMNS = "too_few_columns"
TOO_MANY_COLUMNS = "too_many_columns"
BAD_QUOTING = "bad_quoting"
NUM_EXAMPLES = 5
_MAX_TEXT = 60


def missing(column: str) -> str:
    """The reason of a row whose `column` is empty."""
    return f"missing:{column}"


def not_an_integer(column: str) -> str:
    """The reason of a row whose `column` holds something that is no whole number of 64 bits."""
    return f"not_an_integer:{column}"


def out_of_range(column: str) -> str:
    """The reason of a row whose `column` holds a number that the format rules out."""
    return f"out_of_range:{column}"


@dataclass(frozen=True)
class BadRow:
    """One unusable row: where it stands (`events.csv, line` 3), why, and the text that is wrong."""

    where: str
    number: int
    reason: str
    text: str

    def __str__(self) -> str:
        kind, _, column = self.reason.partition(":")
        claim = f"{column} is {kind.replace('_', ' ')}" if column else kind.replace("_", " ")
        text = self.text if len(self.text) <= _MAX_TEXT else self.text[:_MAX_TEXT] + "..."
        return f"{self.where} {self.number}: {claim} ({text!r})"


@dataclass
class BadRows:
    """Unusable rows of one source, or of one block of it.

    Attributes:
        counts: reason -> rows dropped for it; a row is counted once, under the first reason that holds.
        first: the earliest few of them, blank lines excluded.
    """

    counts: dict[str, int] = field(default_factory=dict)
    first: list[BadRow] = field(default_factory=list)

    @property
    def num_bad(self) -> int:
        """Rows dropped for a fault; a blank line is none."""
        return sum(count for reason, count in self.counts.items() if reason != BLANK_LINE)

    @property
    def num_dropped(self) -> int:
        """All rows dropped, blank lines included."""
        return sum(self.counts.values())

    def add(self, other: BadRows, rows_before: int = 0) -> None:
        """Adds the rows of a later block, in which `rows_before` rows of the file are not counted."""
        for reason, count in other.counts.items():
            self.counts[reason] = self.counts.get(reason, 0) + count
        room = max(0, NUM_EXAMPLES - len(self.first))
        self.first += [
            dataclasses.replace(row, number=row.number + rows_before) for row in other.first[:room]
        ]

    def check(self, rows_in: int, max_bad_fraction: float) -> None:
        """Stops the run when more than `max_bad_fraction` of `rows_in` rows are bad.

        Raises:
            DataError: too many; names the first bad row by file, line and field.
        """
        if self.num_bad <= max_bad_fraction * rows_in:
            return
        raise DataError(
            f"{self.first[0]}; {self.num_bad} of {rows_in} rows cannot be used, more than --max-bad-fraction "
            f"{max_bad_fraction:g} allows: correct the file, name other columns with --user, --item, --time, "
            "or raise --max-bad-fraction to drop such rows"
        )

    def to_json(self) -> dict[str, Any]:
        """Plain data that `from_json` reads."""
        return {"counts": self.counts, "first": [dataclasses.astuple(row) for row in self.first]}

    @classmethod
    def from_json(cls, content: dict[str, Any]) -> BadRows:
        """What `to_json` gave."""
        return cls(dict(content["counts"]), [BadRow(*row) for row in content["first"]])
