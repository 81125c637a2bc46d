"""Read the log of a sweep's job: its last start, and the first error after it. Does not import torch."""

import re
from collections.abc import Iterable
from pathlib import Path

STARTS = "longplay: job"
"""Beginning of the line that each start of a job prints."""
STOPPED = "longplay: stopped on request; the run has saved"
"""Line that a job prints when it ends before its run is finished."""
_TAIL_BYTES = 1 << 16
_PYTHON_ERROR = re.compile(r"[\w.]*(Error|Exception|Interrupt)\b.*:")


def logs_of_job(folder: Path, job_id: str) -> list[Path]:
    """Return the logs of a job's ranks in submitit's `folder`, rank 0's first."""
    name = re.compile(rf"{re.escape(job_id)}_(\d+)_log\.out")  # 5_1_0_log.out belongs to job 5_1
    found = {int(match[1]): log for log in folder.glob("*_log.out") if (match := name.fullmatch(log.name))}
    return [found[rank] for rank in sorted(found)]


def tail(path: Path) -> str:
    """Return the last 64 KiB of a regular file as text; "" if it cannot be read."""
    if not path.is_file():  # opening a named pipe could wait forever
        return ""
    try:
        with open(path, "rb") as file:
            file.seek(0, 2)
            file.seek(max(0, file.tell() - _TAIL_BYTES))
            return file.read().decode(errors="replace")
    except OSError:
        return ""


def since_start(log: Path) -> list[str]:
    """Return the lines after the last start, without blank ones."""
    return [line for line in tail(log).rpartition(STARTS)[2].splitlines() if line.strip()]


def last_error(logs: Iterable[Path]) -> str | None:
    """Return the first error that any rank printed after the last start; others usually follow from it."""
    for log in logs:
        for line in since_start(log):
            if "longplay: error" in line:
                return line.partition("longplay: error")[2].lstrip(": ").strip()
            if _PYTHON_ERROR.match(line):
                return line.strip()
    return None
