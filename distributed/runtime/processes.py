"""Look at processes of this host, and end this one."""

import os
import sys
import threading

import psutil

_FLUSH_S = 1.0


def is_alive(pid: int) -> bool:
    """Return whether a process of this host runs; a zombie does not."""
    try:
        return psutil.Process(pid).status() not in (psutil.STATUS_ZOMBIE, psutil.STATUS_DEAD)
    except psutil.NoSuchProcess:
        return False


def exit_now() -> None:
    """End this process immediately, even if its main thread is blocked, for example in a write to stdout."""
    flushing = threading.Thread(target=_flush, daemon=True)
    flushing.start()
    flushing.join(_FLUSH_S)
    os._exit(1)


def _flush() -> None:
    sys.stderr.flush()
    sys.stdout.flush()
