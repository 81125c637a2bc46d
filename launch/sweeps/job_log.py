"""What the log of a sweep's job says: its last start, and the first error after it. Needs no torch."""

import re
from collections.abc import Iterable
from pathlib import Path

STARTS = "longplay: job"
"""Each start of a job prints a line that begins so."""
_TAIL_BYTES = 1 << 16
_PYTHON_ERROR = re.compile(r"[\w.]*(Error|Exception|Interrupt)\b.*:")


def tail(path: Path) -> str:
    """The last 64 KiB of a file as text, nothing of one that cannot be read."""
    try:
        with open(path, "rb") as file:
            file.seek(0, 2)
            file.seek(max(0, file.tell() - _TAIL_BYTES))
            return file.read().decode(errors="replace")
    except OSError:
        return ""


def since_start(log: Path) -> list[str]:
    """The lines after the last start, blank ones left out."""
    return [line for line in tail(log).rpartition(STARTS)[2].splitlines() if line.strip()]


def last_error(logs: Iterable[Path]) -> str | None:
    """The first error after the last start that any rank printed: the others mostly follow from it."""
    for log in logs:
        for line in since_start(log):
            if "longplay: error" in line:
                return line.partition("longplay: error")[2].lstrip(": ").strip()
            if _PYTHON_ERROR.match(line):
                return line.strip()
    return None
