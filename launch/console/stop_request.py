"""A request to save and stop, made by a signal."""

import ctypes
import os
import select
import signal
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from typing import Any

from longplay.distributed.runtime.launchers import is_other_rank

_SIGNALS = (signal.SIGTERM, signal.SIGUSR1, signal.SIGINT)
_DEFAULT, _IGNORE = 0, 1  # SIG_DFL and SIG_IGN of signal.h


Interrupts = Callable[[], AbstractContextManager[object]]
"""Returns a context that a requested stop ends with StopRequested; see `StopRequest.interrupts`."""


class StopRequested(BaseException):
    """A wait ended early, because the run is to save and stop."""


class StopRequest:
    """Turn the first SIGTERM, SIGUSR1 or SIGINT into a request to save and stop; a second one kills.

    A context manager. Python runs a handler between two bytecodes of the main thread, so not during a long
    native call. A thread that reads Python's wakeup file therefore handles the first signal, and
    restores the default action of later ones, which needs no Python code.

    At the end of a job step Slurm sends SIGTERM twice, through slurmd and through srun, and SIGKILL after a
    grace period. Inside a job step a second SIGTERM or SIGUSR1 is therefore ignored.
    """

    def __init__(self) -> None:
        self.signal: signal.Signals | None = None
        self._interrupts = False
        self._before: dict[int, Any] = {}

    @property
    def requested(self) -> bool:
        return self.signal is not None

    @contextmanager
    def interrupts(self) -> Iterator[None]:
        """End a wait early: raise StopRequested when the request comes, or at once if it has come.

        Raises:
            StopRequested: a stop is requested.
        """
        self._interrupts = True
        try:
            if self.requested:
                raise StopRequested
            yield
        finally:
            self._interrupts = False

    def __enter__(self) -> "StopRequest":
        if threading.current_thread() is not threading.main_thread():
            return self  # only the main thread may have handlers
        self._read, self._write = os.pipe()
        os.set_blocking(self._write, False)
        self._thread = threading.Thread(target=self._handle_signals, name="longplay-signals", daemon=True)
        self._thread.start()
        self._wakeup_before = signal.set_wakeup_fd(self._write, warn_on_full_buffer=False)
        self._before = {number: signal.signal(number, self._receive) for number in _SIGNALS}
        return self

    def __exit__(self, *_: object) -> None:
        """Restore the handlers. After a request, a second signal keeps its meaning until the process ends."""
        if not self._before:
            return
        signal.set_wakeup_fd(self._wakeup_before)
        os.close(self._write)
        self._thread.join()
        os.close(self._read)
        if not self.requested:
            for number, handler in self._before.items():
                signal.signal(number, handler)

    def _receive(self, number: int, frame: Any) -> None:
        if not self.requested:
            self.signal = signal.Signals(number)
        if self._interrupts:
            self._interrupts = False
            raise StopRequested

    def _handle_signals(self) -> None:
        """Handle the signals that arrive, in a thread, until the pipe is closed."""
        received = 0
        while numbers := os.read(self._read, 1):
            if (number := numbers[0]) not in _SIGNALS:
                continue
            received += 1
            if received == 1:
                _set_later_actions()
                _print_notice(signal.Signals(number))
            elif number not in _ignored_later():
                os.kill(os.getpid(), number)


def _ignored_later() -> set[int]:
    return {signal.SIGTERM, signal.SIGUSR1} if "SLURM_STEP_ID" in os.environ else set()


def _set_later_actions() -> None:
    """Set what later signals do. Python's own function for it works in the main thread only."""
    libc = ctypes.CDLL(None)
    libc.signal.argtypes, libc.signal.restype = (ctypes.c_int, ctypes.c_void_p), ctypes.c_void_p
    for number in _SIGNALS:
        libc.signal(number, _IGNORE if number in _ignored_later() else _DEFAULT)


def _print_notice(number: signal.Signals) -> None:
    """Print on rank 0 that the run will stop. Do not wait for a terminal or a pipe that takes no output."""
    if is_other_rank(os.environ):
        return
    what = "Ctrl-C" if number == signal.SIGINT else number.name
    again = "" if _ignored_later() else f"; a second {what} ends it now, without saving"
    line = f"longplay: {what}: the run ends its step, saves and stops{again}\n"
    descriptor = sys.__stderr__.fileno() if sys.__stderr__ is not None else 2
    if select.select([], [descriptor], [], 1.0)[1]:
        os.write(descriptor, line.encode())
