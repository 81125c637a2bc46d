"""Run a function over many arguments in a few threads, with bounded memory."""

from __future__ import annotations

import os
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TypeVar

A = TypeVar("A")
B = TypeVar("B")
MAX_WORKERS = 8
"""The largest number of threads."""


def default_num_workers() -> int:
    """Return the number of cores that this process may use, at most 8."""
    return min(MAX_WORKERS, len(os.sched_getaffinity(0)))


def in_order(function: Callable[[A], B], arguments: Iterable[A], num_workers: int) -> Iterator[B]:
    """Yield the result of `function` for each argument, in order, computed by `num_workers` threads.

    Arguments are taken only when a thread is free. The first exception is raised here, and no further call
    starts.
    """
    pending: deque[Future[B]] = deque()
    with ThreadPoolExecutor(num_workers, thread_name_prefix="longplay-prepare") as pool:
        try:
            for argument in arguments:
                pending.append(pool.submit(function, argument))
                if len(pending) > num_workers:
                    yield pending.popleft().result()
            while pending:
                yield pending.popleft().result()
        finally:
            for future in pending:
                future.cancel()
