"""The file metrics.jsonl: one line per scalar, {"step": 120, "tag": "train/loss", "value": 6.91}.

Readers skip incomplete and damaged lines, so the file can be read during a run and after a kill. This module
does not import torch.
"""

import json
from collections.abc import Iterable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from longplay.common.atomic import write_text
from longplay.common.json_files import JsonFileError, Natural, parse_json, read_content

METRICS_FILE = "metrics.jsonl"

Series = dict[int, float]
"""The values of one tag by step."""


@dataclass(frozen=True)
class Scalar:
    """One line of the file."""

    step: Natural
    tag: str
    value: float

    def line(self) -> str:
        """Return the scalar as a line of JSON."""
        return json.dumps({"step": self.step, "tag": self.tag, "value": self.value}) + "\n"


def parse_scalars(lines: Iterable[str]) -> Iterator[Scalar]:
    """Yield the scalars of these lines in order; skip incomplete and damaged lines."""
    for line in lines:
        with suppress(JsonFileError):
            yield parse_json(line.encode(errors="replace"), Scalar, METRICS_FILE)


def read_scalars(run: Path) -> dict[str, Series]:
    """Return a run's series by tag; empty if the file does not exist or cannot be read."""
    try:
        lines = read_content(run / METRICS_FILE).decode(errors="replace").splitlines()
    except (OSError, JsonFileError):
        lines = []
    found: dict[str, Series] = {}
    for scalar in parse_scalars(lines):
        found.setdefault(scalar.tag, {})[scalar.step] = scalar.value
    return found


def drop_scalars_after(run: Path, step: int) -> None:
    """Remove the scalars logged after `step` and damaged lines, atomically."""
    file = run / METRICS_FILE
    if not file.is_file():
        return
    lines = file.read_text(errors="replace").splitlines()
    kept = [line for line in lines if any(scalar.step <= step for scalar in parse_scalars([line]))]
    write_text(file, "".join(line + "\n" for line in kept))
