"""Mark where this rank waits for other ranks or for its device, and count the collectives that it starts.

The watchdog uses both to find the rank that hangs. On a GPU a collective returns immediately, and the host
waits later, where it reads a result: mark these places with `waiting`. Collectives of DeepSpeed's backend are
marked by `mark_collectives`.
"""

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from longplay.distributed.zero.deepspeed_env import comm

_waits: list[str] = []
_num_collectives = 0


@contextmanager
def waiting(what: str) -> Iterator[None]:
    """Mark that the main thread waits for `what`, in the watchdog's message; no-op in other threads."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    _waits.append(what)
    try:
        yield
    finally:
        _waits.pop()


def current_wait() -> str:
    """Return what the main thread waits for; empty if it computes. Thread-safe."""
    return (_waits[-1:] or [""])[0]


def num_collectives() -> int:
    """Return the number of collectives that this rank has started through DeepSpeed's backend."""
    return _num_collectives


def mark_collectives() -> None:
    """Mark and count the collectives of DeepSpeed's backend, those of DeepSpeed itself included."""
    module = comm.comm
    if not isinstance(module.cdb, _MarkedBackend):
        module.cdb = _MarkedBackend(module.cdb)


def unmark_collectives() -> None:
    """Undo `mark_collectives`."""
    module = comm.comm
    if isinstance(module.cdb, _MarkedBackend):
        module.cdb = vars(module.cdb)["backend"]


class _MarkedBackend:
    """DeepSpeed's communication backend, whose methods count and mark."""

    def __init__(self, backend: Any) -> None:
        vars(self)["backend"] = backend

    def __setattr__(self, name: str, value: Any) -> None:
        setattr(vars(self)["backend"], name, value)

    def __getattr__(self, name: str) -> Any:
        value = getattr(vars(self)["backend"], name)
        if not callable(value) or name.startswith(("is_", "get_", "has_", "new_", "init", "destroy")):
            return value

        def call(*args: Any, **settings: Any) -> Any:
            global _num_collectives
            _num_collectives += 1
            with waiting(name):
                work = value(*args, **settings)
            return _MarkedWork(work, name) if hasattr(work, "wait") else work

        return call


class _MarkedWork:
    """The handle of a collective in flight; its `wait` marks."""

    def __init__(self, work: Any, name: str) -> None:
        self._work, self._name = work, name

    def wait(self, *args: Any) -> Any:
        with waiting(self._name):
            return self._work.wait(*args)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._work, name)
