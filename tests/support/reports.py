"""Write a report and read its CSV files."""

import csv
from pathlib import Path

from longplay.launch.cli import main


def rows_of(file: Path, **wanted: str) -> list[dict[str, str]]:
    """Return the rows of a CSV file in which the named columns have these values."""
    with open(file, newline="") as lines:
        rows = list(csv.DictReader(lines))
    return [row for row in rows if all(row[name] == value for name, value in wanted.items())]


def the_row(file: Path, **wanted: str) -> dict[str, str]:
    rows = rows_of(file, **wanted)
    assert len(rows) == 1, (wanted, rows)
    return rows[0]


def report(*paths: Path, out: Path) -> Path:
    assert main(["report", *map(str, paths), "--out", str(out)]) == 0
    return out
