"""What every reader gives: blocks of a source, each parsed on its own into usable events and an account."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any, Protocol

import numpy as np

from longplay.data_shards.readers.bad_rows import BadRows

Progress = Callable[[str, int, int], None]
"""Called with (stage, events done, events in all, estimated while reading) as work advances."""

BLOCK_ROWS = 1_000_000
"""Rows of a block where rows, not bytes, are what is counted."""


def no_progress(stage: str, done: int, total: int) -> None:
    """The progress callback of those who want none."""


@dataclass(frozen=True)
class ParsedBlock:
    """The usable events of one block, in source order.

    Attributes:
        user, item, time: (events,) int64.
        rows_in: rows of the block, header excluded.
        bad_rows: unusable rows, numbered from the block's first row.
        dropped: reason -> rows that are sound and were not asked for.
    """

    user: np.ndarray
    item: np.ndarray
    time: np.ndarray
    rows_in: int
    bad_rows: BadRows = field(default_factory=BadRows)
    dropped: dict[str, int] = field(default_factory=dict)

    def __post_init__(self) -> None:
        accounted = len(self.user) + self.bad_rows.num_dropped + sum(self.dropped.values())
        assert self.rows_in == accounted, "a reader lost rows"


class Block(Protocol):
    """A part of a source that can be parsed on its own, in any thread.

    Attributes:
        part: the file it is of; blocks of a file follow each other, rows are numbered within the file.
        weight: its share of the source, in the unit of `Source.total_weight`.
    """

    @property
    def part(self) -> str: ...

    @property
    def weight(self) -> int: ...

    def parse(self) -> ParsedBlock:
        """Reads and parses it.

        Raises:
            DataError: it cannot be read.
        """
        ...


class Source(Protocol):
    """Something `prepare_dataset` can read: raw files of one format, or a generator."""

    def describe(self) -> dict[str, Any]:
        """`{"format", "paths", "options"}` for the manifest."""
        ...

    def fingerprint(self) -> list[Any]:
        """Plain data that differs when the content may: path, size and time of change of each file.

        Raises:
            DataError: a file that cannot be read, or is none.
        """
        ...

    def max_events(self) -> int:
        """An upper estimate of its events, from the files' sizes."""
        ...

    def total_weight(self) -> int:
        """The sum of its blocks' weights."""
        ...

    def blocks(self, block_bytes: int) -> Iterator[Block]:
        """Its blocks in order, the same ones at every call with the same `block_bytes`; text of about that
        size each.

        Raises:
            DataError: a file that cannot be read, a missing column.
        """
        ...
