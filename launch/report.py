"""`longplay report SWEEP [--out DIR]`: the tables and figures of a study, from its runs alone."""

import argparse
import re
import sys
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from longplay.common.atomic import write_text
from longplay.launch.reports.data import ReportError, Run, collect
from longplay.launch.reports.groups import Group, group_runs
from longplay.launch.reports.page import Picture, Section, as_html, as_markdown
from longplay.launch.reports.tables import (
    ablation_csv,
    ablation_tables,
    accuracy_csv,
    accuracy_tables,
    efficiency_csv,
    efficiency_tables,
    runs_csv,
    runs_table,
)

_ACCURACY = (
    "Of the test split, by the checkpoint that was best in validation: means over seeds ± one sample "
    "standard deviation, the best of each context length in bold. HR@k is the share of users whose next item "
    "is among the first k; NDCG@k weighs it by its rank."
)
_EFFICIENCY = (
    "Memory is that of one rank: of its GPU where there is one, else of the whole process. Seconds per epoch "
    "are the median step's, times an epoch's steps; they and events per second leave validation and saving "
    "out. Runs that shared a machine with others are slower for it."
)


def register(subparsers: Any) -> None:
    """Add `report` to the `longplay` command."""
    parser = subparsers.add_parser("report", help="tables and figures of a sweep's runs", description=__doc__)
    parser.add_argument(
        "runs",
        nargs="+",
        type=Path,
        metavar="SWEEP",
        help="folders of longplay sweep, run folders, or folders of run folders; finished or not",
    )
    parser.add_argument(
        "--out", type=Path, metavar="DIR", help="default: `report` in the sweep's folder; of several, here"
    )
    parser.set_defaults(func=run)


def run(args: argparse.Namespace) -> int:
    """The command; returns its exit code."""
    runs = collect(args.runs)
    one_sweep = len(args.runs) == 1 and (args.runs[0] / "sweep.json").is_file()
    out = args.out or (args.runs[0] / "report" if one_sweep else Path("report"))
    try:
        write_report(runs, out)
    except OSError as error:
        raise ReportError(f"--out {out}: cannot be written ({error.strerror})") from None
    print(f"report   {len(runs)} runs: {_states(runs)}")
    for each in runs:
        if each.state == "failed":
            print(f"         {each.name}: {each.error}")
    print(f"page     {out / 'report.html'} (also report.md, the CSV files, and plots/)")
    return 0


def write_report(runs: Sequence[Run], out: Path) -> None:
    """Write report.md, report.html, four CSV files and plots/ into `out`, over those that are there.

    Raises:
        OSError: they cannot be written.
    """
    groups = group_runs(runs)
    pictures = _draw(groups, out)
    by_kind = {
        kind: [picture for name, picture in pictures if name.startswith(kind)]
        for kind in ("accuracy-", "efficiency-", "time-", "ablation-")
    }
    sections = [
        Section(
            title="Accuracy",
            text=_ACCURACY,
            tables=list(accuracy_tables(groups)),
            pictures=by_kind["accuracy-"] + by_kind["time-"],
        ),
        Section(
            title="Efficiency",
            text=_EFFICIENCY,
            tables=list(efficiency_tables(groups)),
            pictures=by_kind["efficiency-"],
        ),
        Section(
            title="Ablation",
            text="As above; the best variant of each model is in bold.",
            tables=list(ablation_tables(groups)),
            pictures=by_kind["ablation-"],
        ),
        Section(title="Runs", text=_unfinished(runs), tables=[runs_table(runs)]),
    ]
    sections = [section for section in sections if section.tables]
    title = f"Report of {', '.join(dict.fromkeys(run.source.name for run in runs))}"
    text = f"{len(runs)} runs: {_states(runs)}."
    pages = {
        "report.md": as_markdown(title, text, sections),
        "report.html": as_html(title, text, sections),
        "accuracy.csv": accuracy_csv(groups),
        "efficiency.csv": efficiency_csv(groups),
        "ablation.csv": ablation_csv(groups),
        "runs.csv": runs_csv(runs),
    }
    for name, content in pages.items():
        write_text(out / name, content)


def _draw(groups: Sequence[Group], out: Path) -> list[tuple[str, Picture]]:
    """The figures' names and what the pages show of them; figures of an earlier report go."""
    from longplay.launch.reports.plots import plots, save

    folder = out / "plots"
    folder.mkdir(parents=True, exist_ok=True)
    pictures = []
    for plot in plots(groups):
        name = re.sub(r"[^\w.-]+", "_", plot.name)
        for kind in ("png", "svg"):
            save(plot, str(folder / f"{name}.{kind}"), kind)
        svg = (folder / f"{name}.svg").read_text(encoding="utf-8")
        picture = Picture(title=plot.title, caption=plot.caption, png=f"plots/{name}.png", svg=svg)
        pictures.append((name, picture))
    drawn = {name for name, _ in pictures}
    for kind in ("accuracy", "efficiency", "time", "ablation"):
        for file in folder.glob(f"{kind}-*"):
            if file.suffix in (".png", ".svg") and file.stem not in drawn:
                file.unlink()
    return pictures


def _states(runs: Sequence[Run]) -> str:
    return ", ".join(f"{number} {state}" for state, number in Counter(run.state for run in runs).items())


def _unfinished(runs: Sequence[Run]) -> str:
    lacking = [run for run in runs if run.state != "finished"]
    if not lacking:
        return "All are finished."
    return (
        f"{len(lacking)} of {len(runs)} are not finished; a sweep's are made up by repeating its command, a "
        "run of its own by `longplay evaluate RUN --out RUN/evaluation/test.json` once it is trained."
    )


if __name__ == "__main__":
    from longplay.launch.cli import main

    sys.exit(main(["report", *sys.argv[1:]]))
