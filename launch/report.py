"""`longplay report SWEEP [--out DIR]`: write tables and figures of runs from the files in their folders."""

import argparse
import sys
from pathlib import Path
from typing import Any

import polars as pl

from longplay.common.printable import printable
from longplay.launch.reports.data import ReportError, collect
from longplay.launch.reports.writing import count_runs, write_report
from longplay.launch.settings.imports import add_import_argument


def register(subparsers: Any) -> None:
    """Add `report` to the `longplay` command."""
    parser = subparsers.add_parser(
        "report",
        description="Write tables and figures of runs from the files in their folders.",
    )
    parser.add_argument(
        "runs",
        nargs="+",
        type=Path,
        metavar="SWEEP",
        help="sweep folders, run folders, or folders of run folders; the runs need not be finished",
    )
    parser.add_argument(
        "--out",
        type=Path,
        metavar="DIR",
        help="default: SWEEP/report for one sweep or one run, else report",
    )
    add_import_argument(parser)  # for the display names of the user's encoders
    parser.set_defaults(func=run)


def run(args: argparse.Namespace) -> int:
    """Run the command and return its exit code."""
    runs = collect(args.runs)
    first = args.runs[0]
    inside = len(args.runs) == 1 and any((first / name).is_file() for name in ("sweep.json", "config.json"))
    out = args.out or (first / "report" if inside else Path("report"))
    try:
        write_report(runs, out)
    except OSError as error:
        raise ReportError(f"--out {out}: cannot be written ({error.strerror})") from None
    print(f"report   {count_runs(runs)}")
    for name, error in runs.filter(pl.col("state") == "failed").select("run", "error").rows():
        print(printable(f"         {name}: {error}"))
    print(f"page     {out / 'report.html'} (also report.md, the CSV files, and plots/)")
    return 0


if __name__ == "__main__":
    from longplay.launch.cli import main

    sys.exit(main(["report", *sys.argv[1:]]))
