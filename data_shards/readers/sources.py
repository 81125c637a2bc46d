"""The interface of a source: blocks that are parsed independently into events and counts of unusable rows."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any, Protocol

import numpy as np
import pyarrow as pa

from longplay.data_shards.readers.bad_rows import BadRows
from longplay.data_shards.storage.manifest import SourceInfo, TimeUnit

BLOCK_ROWS = 1_000_000
"""Rows of a block, for sources that are not divided by bytes."""

MISSING = np.iinfo(np.int64).min
"""Stands for a missing value of a categorical feature that holds integers."""

Ids = np.ndarray | pa.DictionaryArray
"""Ids of N events: (N,) int64, or N strings as indices into the distinct ones."""


@dataclass(frozen=True)
class ParsedBlock:
    """The usable events of one block, in source order.

    Attributes:
        user, item: (events,) ids.
        time: (events,) int64. If the time unit of the source is `index`, the number of the row in the block,
            from 0.
        rows_in: rows of the block, without the header.
        bad_rows: unusable rows, numbered from the first row of the block.
        dropped: reason -> number of usable rows that the source's options exclude.
        features: categorical feature -> (events,) ids, `MISSING` or null where missing; float feature ->
            (events,) float32, NaN where missing.
    """

    user: Ids
    item: Ids
    time: np.ndarray
    rows_in: int
    bad_rows: BadRows = field(default_factory=BadRows)
    dropped: dict[str, int] = field(default_factory=dict)
    features: dict[str, Ids] = field(default_factory=dict)

    def __post_init__(self) -> None:
        accounted = len(self.user) + self.bad_rows.num_dropped + sum(self.dropped.values())
        assert self.rows_in == accounted, "a reader lost rows"


class Block(Protocol):
    """A part of a source that can be parsed independently, in any thread.

    Attributes:
        part: the file of the block. Blocks of a file are consecutive, and row numbers restart in each
            file.
        weight: size of the block in the unit of `Source.total_weight`.
    """

    @property
    def part(self) -> str: ...

    @property
    def weight(self) -> int: ...

    def parse(self) -> ParsedBlock:
        """Read and parse the block.

        Raises:
            DataError: the block cannot be read.
        """
        ...


class Source(Protocol):
    """The input of `prepare_dataset`: raw files of one format, or generated events."""

    def describe(self) -> SourceInfo:
        """Return `{"format", "paths", "options"}` for the manifest."""
        ...

    def fingerprint(self) -> list[Any]:
        """Return plain data that changes when the content may: each file's path, size and modification time.

        Raises:
            DataError: a file is missing or cannot be read.
        """
        ...

    def time_unit(self) -> TimeUnit | None:
        """Return the unit of the times: `s`, `ms`, `us`, `ns`, `index` (numbers of rows), or None: unknown.

        Raises:
            DataError: a file cannot be read, or a column is missing.
        """
        ...

    def features(self) -> tuple[tuple[str, str], ...]:
        """Return the name and kind of each event feature."""
        ...

    def summary(self) -> str:
        """Return one line about the types of the ids and the unit of the times."""
        ...

    def max_events(self) -> int:
        """Return an upper estimate of the number of events, from the sizes of the files."""
        ...

    def total_weight(self) -> int:
        """Return the sum of the weights of all blocks."""
        ...

    def blocks(self, block_bytes: int) -> Iterator[Block]:
        """Yield the blocks in order, always the same ones for the same `block_bytes`.

        Args:
            block_bytes: approximate size of a block of text.

        Raises:
            DataError: a file cannot be read, or a column is missing.
        """
        ...
