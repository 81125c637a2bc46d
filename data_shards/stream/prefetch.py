"""Prepare values ahead of their consumer in a background thread."""

from __future__ import annotations

from collections import deque
from collections.abc import Generator, Iterator
from concurrent.futures import Future
from typing import TypeVar

from longplay.common.daemon_threads import DaemonThreads

T = TypeVar("T")


def prefetch(source: Iterator[T], depth: int) -> Iterator[T]:
    """Yield the values of `source`, preparing up to `depth` of them ahead in one background thread.

    An exception in `source` is raised here, after the values before it. Closing or dropping the iterator
    closes `source` and ends the thread, as soon as it has prepared the current value.

    Args:
        source: advanced only in the background thread if `depth` is above 0.
        depth: maximum number of values prepared ahead; 0 starts no thread.
    """
    if depth == 0:
        yield from source
        return
    thread = DaemonThreads(1, "longplay-prefetch")
    ahead: deque[Future[list[T]]] = deque()
    try:
        while True:
            while len(ahead) < depth:
                ahead.append(thread.submit(_take_one, source))
            value = ahead.popleft().result()
            if not value:
                return
            yield value[0]
    finally:
        for future in ahead:
            future.cancel()
        if isinstance(source, Generator):
            thread.submit(source.close)
        thread.shutdown()


def _take_one(source: Iterator[T]) -> list[T]:
    """Return a list with the next value of `source`, or an empty list at its end."""
    for value in source:
        return [value]
    return []
