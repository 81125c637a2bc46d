"""Standard streams that are closed or full, or whose reader has ended."""

import os
import select
import sys
from typing import IO


def open_closed_streams() -> None:
    """Open /dev/null for each standard stream that is closed, as `>&-` closes stdout.

    The next file that is opened would otherwise become the standard output of native libraries.
    """
    for name, mode in (("stdin", "r"), ("stdout", "w"), ("stderr", "w")):
        if getattr(sys, name) is None:  # the lowest free number is that of the closed stream
            setattr(sys, name, open(os.open(os.devnull, os.O_RDWR), mode))


def write_or_drop(stream: IO[str], text: str = "") -> bool:
    """Write `text` and flush. If the stream cannot be written, drop this and all later output.

    Returns:
        Whether the text is written.
    """
    try:
        stream.write(text)
        stream.flush()
    except OSError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), stream.fileno())
        return False
    return True


def reader_has_ended(stream: IO[str]) -> bool:
    """Return whether the program that reads `stream` has ended, as `head` does."""
    closed = select.poll()
    closed.register(stream.fileno(), 0)
    return any(event & select.POLLERR for _, event in closed.poll(0))
