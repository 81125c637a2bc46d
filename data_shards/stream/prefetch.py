"""Work ahead of the consumer in one background thread."""

from __future__ import annotations

import queue
import threading
from collections.abc import Generator, Iterator
from typing import TypeVar

T = TypeVar("T")
_POLL_S = 0.1


def prefetch(source: Iterator[T], depth: int) -> Iterator[T]:
    """Yields what `source` yields, made up to `depth` ahead in a thread; 0 makes it here and now.

    An exception in `source` is raised here, after everything made before it. Closing the iterator, or
    dropping it, ends the thread.
    """
    if depth == 0:
        yield from source
        return
    ready: queue.Queue[tuple[str, T | BaseException | None]] = queue.Queue(maxsize=depth)
    stopped = threading.Event()

    def offer(kind: str, value: T | BaseException | None) -> bool:
        while not stopped.is_set():
            try:
                ready.put((kind, value), timeout=_POLL_S)
                return True
            except queue.Full:
                continue
        return False

    def work() -> None:
        try:
            for value in source:
                if not offer("value", value):
                    return
            offer("end", None)
        except BaseException as error:
            offer("error", error)
        finally:
            if isinstance(source, Generator):
                source.close()  # here, since what it holds may belong to this thread

    thread = threading.Thread(target=work, name="longplay-prefetch", daemon=True)
    thread.start()
    try:
        while True:
            kind, value = ready.get()
            if kind == "end":
                return
            if kind == "error":
                assert isinstance(value, BaseException)
                raise value
            yield value  # pyright: ignore[reportReturnType]  # the kind says it is a T
    finally:
        stopped.set()
        thread.join()
