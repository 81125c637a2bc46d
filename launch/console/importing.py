"""Ctrl-C while modules are imported."""

import os
import signal
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any


@contextmanager
def exit_on_interrupt() -> Iterator[None]:
    """Let Ctrl-C end the process at once with exit code 130. Only for the main thread of a command.

    KeyboardInterrupt would not be enough: some packages catch any exception while they import another one,
    and continue without it.
    """
    before = signal.getsignal(signal.SIGINT)
    if before is not signal.default_int_handler:  # ignored, as in a job that a shell started with &
        yield
        return
    signal.signal(signal.SIGINT, _exit)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)


def _exit(*_: Any) -> None:
    os.write(2, b"longplay: error: interrupted\n")
    os._exit(130)
