"""What every reader gives: the usable events of a source and an account of the rest."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, Protocol

import polars as pl

from longplay.data_shards.bad_rows import BadRows

Progress = Callable[[str, int, int], None]
"""Called with (stage, done, total) as work advances."""

BLOCK_ROWS = 1_000_000
"""Rows parsed at a time."""


def no_progress(stage: str, done: int, total: int) -> None:
    """The progress callback of those who want none."""


@dataclass(frozen=True)
class RawEvents:
    """Events as the source orders them.

    Attributes:
        frame: columns `user`, `item`, `time`, Int64, one row per usable event, in source order.
        rows_in: rows of the source, header excluded; `frame.height` plus the rows in `bad_rows`.
    """

    frame: pl.DataFrame
    rows_in: int
    bad_rows: BadRows = field(default_factory=BadRows)

    def __post_init__(self) -> None:
        assert self.rows_in == self.frame.height + self.bad_rows.num_dropped, "a reader lost rows"


class Source(Protocol):
    """Something `prepare_dataset` can read: raw files of one format, or a generator."""

    def describe(self) -> dict[str, Any]:
        """`{"format", "paths", "options"}` for the manifest."""
        ...

    def read(self, progress: Progress = no_progress) -> RawEvents:
        """Reads all of it.

        Raises:
            DataError: a file that cannot be read, a missing column, no rows.
        """
        ...
