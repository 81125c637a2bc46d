"""metrics.jsonl in a run folder: one line per scalar, {"step": 120, "tag": "train/loss", "value": 6.91}.

Needs no torch. A reader may come while a line is being written, or after a run was killed writing one: a
line that is cut off counts as not written yet.
"""

import json
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import NamedTuple

from longplay.common.atomic import write_text

METRICS_FILE = "metrics.jsonl"

Series = dict[int, float]
"""Step -> value of one tag."""


class Scalar(NamedTuple):
    """One line."""

    step: int
    tag: str
    value: float

    def line(self) -> str:
        return json.dumps(self._asdict()) + "\n"


def parse_scalars(lines: Iterable[str]) -> Iterator[Scalar]:
    """The scalars of these lines, in their order; lines that are cut off or damaged are passed over."""
    for line in lines:
        try:
            entry = json.loads(line)
            yield Scalar(int(entry["step"]), str(entry["tag"]), float(entry["value"]))
        except (ValueError, KeyError, TypeError, OverflowError):
            continue


def read_scalars(run: Path) -> dict[str, Series]:
    """Tag -> step -> value of a whole run; nothing where it has logged nothing, or cannot be read."""
    try:
        lines = (run / METRICS_FILE).read_text(errors="replace").splitlines()
    except OSError:
        lines = []
    found: dict[str, Series] = {}
    for step, tag, value in parse_scalars(lines):
        found.setdefault(tag, {})[step] = value
    return found


def drop_scalars_after(run: Path, step: int) -> None:
    """Leave out what was logged after `step`, and lines cut off or damaged. A kill leaves the file whole."""
    file = run / METRICS_FILE
    if not file.exists():
        return
    lines = file.read_text(errors="replace").splitlines()
    kept = [line for line in lines if any(scalar.step <= step for scalar in parse_scalars([line]))]
    write_text(file, "".join(line + "\n" for line in kept))
