"""Count the unusable rows of a source by reason, and keep the first few as examples."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass, field
from typing import Any

from longplay.data_shards.errors import DataError

BLANK_LINE = "blank_line"
TOO_FEW_COLUMNS = "too_few_columns"
TOO_MANY_COLUMNS = "too_many_columns"
BAD_QUOTING = "bad_quoting"
NOT_JSON = "not_json"
NOT_UTF8 = "not_utf8"
LENGTHS_DIFFER = "lengths_differ"
_QUOTED = "a quoted field may not hold a line break; write such a file as Parquet"
_HINTS = {
    NOT_UTF8: "`iconv -f LATIN1 -t UTF-8` converts Latin-1",
    BAD_QUOTING: _QUOTED,
    TOO_FEW_COLUMNS: _QUOTED,
    TOO_MANY_COLUMNS: _QUOTED,
    "not_a_date": "dates are ISO 8601, such as 2020-01-31 or 2020-01-31T10:00:00Z",
}
"""Reason -> hint for the message. Those about the number of columns need a row with a quote."""
NUM_EXAMPLES = 5
_MAX_TEXT = 60


@dataclass(frozen=True)
class BadRow:
    """One unusable row.

    Attributes:
        where: the file and what `number` counts, such as `events.csv, line`.
        number: line or row number, from 1 in each file.
        reason: why it is unusable.
        text: the unusable value or line.
    """

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
    """The unusable rows of a source or of one of its blocks.

    Attributes:
        counts: reason -> rows dropped. A row counts once, under the first reason that applies.
        first: the first `NUM_EXAMPLES` of these rows, without blank lines.
    """

    counts: dict[str, int] = field(default_factory=dict)
    first: list[BadRow] = field(default_factory=list)

    @property
    def num_bad(self) -> int:
        """Number of dropped rows without blank lines, which are not errors."""
        return sum(count for reason, count in self.counts.items() if reason != BLANK_LINE)

    @property
    def num_dropped(self) -> int:
        """Number of dropped rows, including blank lines."""
        return sum(self.counts.values())

    def add(self, other: BadRows, rows_before: int = 0) -> None:
        """Add the counts and examples of a later block. `rows_before` is added to its row numbers."""
        for reason, count in other.counts.items():
            self.counts[reason] = self.counts.get(reason, 0) + count
        room = max(0, NUM_EXAMPLES - len(self.first))
        self.first += [
            dataclasses.replace(row, number=row.number + rows_before) for row in other.first[:room]
        ]

    def check(self, rows_in: int, max_bad_fraction: float, *, estimated: bool = False) -> None:
        """Check that at most `max_bad_fraction` of `rows_in` rows are unusable.

        Args:
            rows_in: number of rows, without the header.
            max_bad_fraction: maximum share of unusable rows.
            estimated: `rows_in` is an upper estimate; the message has "at most".

        Raises:
            DataError: more are unusable; the message names the first one by file, line and column.
        """
        if self.num_bad <= max_bad_fraction * rows_in:
            return
        kinds = {reason.partition(":")[0] for reason in self.counts}
        if not any('"' in row.text for row in self.first):
            kinds -= {TOO_FEW_COLUMNS, TOO_MANY_COLUMNS}
        hints = "; ".join(dict.fromkeys(hint for kind, hint in _HINTS.items() if kind in kinds))
        hints = f" ({hints})" if hints else ""
        raise DataError(
            f"{self.first[0]}; {self.num_bad} of {'at most ' * estimated}{rows_in} rows are unusable, more "
            f"than --max-bad-fraction {max_bad_fraction:g} allows; correct the file{hints}, "
            "choose other columns with --user, --item and --time, pass --user-type string or "
            "--item-type string if ids are not integers, or raise --max-bad-fraction to drop these rows"
        )

    def to_json(self) -> dict[str, Any]:
        """Return plain data for `from_json`."""
        return {"counts": self.counts, "first": [dataclasses.astuple(row) for row in self.first]}

    @classmethod
    def from_json(cls, content: dict[str, Any]) -> BadRows:
        """Restore the result of `to_json`."""
        return cls(dict(content["counts"]), [BadRow(*row) for row in content["first"]])
