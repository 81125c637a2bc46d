"""The account of source rows that could not be used: counted by reason, the first few remembered."""

from __future__ import annotations

from dataclasses import dataclass, field

from longplay.data_shards.errors import DataError

BLANK_LINE = "blank_line"
TOO_FEW_COLUMNS = "too_few_columns"
TOO_MANY_COLUMNS = "too_many_columns"
BAD_QUOTING = "bad_quoting"
_MAX_TEXT = 60


def missing(column: str) -> str:
    """The reason of a row whose `column` is empty."""
    return f"missing:{column}"


def not_an_integer(column: str) -> str:
    """The reason of a row whose `column` holds something that is no whole number of 64 bits."""
    return f"not_an_integer:{column}"


@dataclass(frozen=True)
class BadRow:
    """One unusable row: where it stands (`events.csv, line 3`), why, and the text that is wrong."""

    where: str
    reason: str
    text: str

    def __str__(self) -> str:
        kind, _, column = self.reason.partition(":")
        claim = f"{column} is {kind.replace('_', ' ')}" if column else kind.replace("_", " ")
        text = self.text if len(self.text) <= _MAX_TEXT else self.text[:_MAX_TEXT] + "..."
        return f"{self.where}: {claim} ({text!r})"


@dataclass
class BadRows:
    """Unusable rows of one source.

    Attributes:
        counts: reason -> rows dropped for it; a row is counted once, under the first reason that holds.
        first: the earliest few of them, blank lines excluded.
        num_kept: how many rows `first` remembers.
    """

    counts: dict[str, int] = field(default_factory=dict)
    first: list[BadRow] = field(default_factory=list)
    num_kept: int = 5

    @property
    def num_bad(self) -> int:
        """Rows dropped for a fault; a blank line is none."""
        return sum(count for reason, count in self.counts.items() if reason != BLANK_LINE)

    @property
    def num_dropped(self) -> int:
        """All rows dropped, blank lines included."""
        return sum(self.counts.values())

    def add(self, counts: dict[str, int], examples: list[BadRow]) -> None:
        """Adds the rows of one block; blocks come in the order of the source."""
        for reason, count in counts.items():
            self.counts[reason] = self.counts.get(reason, 0) + count
        self.first.extend(examples[: max(0, self.num_kept - len(self.first))])

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
