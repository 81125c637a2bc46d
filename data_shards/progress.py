"""Callbacks that report the progress of long work."""

from __future__ import annotations

from collections.abc import Callable, Iterable

Progress = Callable[[str, int, int], None]
"""Called with (stage, events done, total events) as work advances; the total is an estimate while reading."""

Track = Callable[[range, str], Iterable[int]]
"""Called with (shard numbers, stage); yields the numbers unchanged and reports each one as it is consumed."""


def no_progress(stage: str, done: int, total: int) -> None:
    """Report nothing."""


def untracked(numbers: range, stage: str) -> Iterable[int]:
    """Return the numbers and report nothing."""
    return numbers
