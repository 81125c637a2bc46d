"""A run folder's evaluation/validation.json and evaluation/test.json: the metrics of its best checkpoint.

`longplay evaluate` and the jobs of a sweep write them, and `longplay report` reads them.
"""

from pathlib import Path
from typing import Any

from longplay.common.json_files import JsonFileError, read_json


def evaluation_file(run: Path, split: str) -> Path:
    """Return the file that holds the run's metrics of a split, as `longplay evaluate --json` prints them."""
    return run / "evaluation" / f"{split}.json"


def is_evaluated(run: Path, split: str) -> bool:
    """Return whether the run's evaluation file of a split exists and is not outdated."""
    file = evaluation_file(run, split)
    return file.is_file() and not is_outdated(run, _read(file))


def is_outdated(run: Path, report: Any) -> bool:
    """Return whether a later training found a better checkpoint than the one that `report` evaluates.

    Args:
        report: the content of an evaluation file. One without a checkpoint's name is not outdated.
    """
    best = _read(run / "best.json")
    names = [each.get("checkpoint") if isinstance(each, dict) else None for each in (report, best)]
    return None not in names and names[0] != names[1]


def _read(file: Path) -> Any:
    try:
        return read_json(file, object)
    except (FileNotFoundError, JsonFileError):
        return None
