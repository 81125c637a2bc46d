"""Divide the numbered pieces of a pass over the parts that prepare a dataset together."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(frozen=True)
class Share:
    """Every `num_parts`-th piece of work.

    Attributes:
        part: the part that does this share, from 1.
        num_parts: the number of parts.
    """

    part: int = 1
    num_parts: int = 1

    def has(self, number: int) -> bool:
        """Return whether the piece with this number, from 0, belongs to the share."""
        return number % self.num_parts == self.part - 1

    def of(self, num_pieces: int) -> Sequence[int]:
        """Return the numbers of the share's pieces."""
        return range(self.part - 1, num_pieces, self.num_parts)


WHOLE = Share()
"""The share of a process that works alone."""
