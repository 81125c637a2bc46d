"""Write a report: two pages, CSV files and figures."""

import re
from collections import Counter
from pathlib import Path

import matplotlib
import polars as pl

from longplay.common.atomic import write_text
from longplay.launch.reports.csv_files import ablation_csv, accuracy_csv, efficiency_csv, runs_csv
from longplay.launch.reports.drawing import MATPLOTLIB, save
from longplay.launch.reports.groups import group_frame, unique
from longplay.launch.reports.page import Picture, Section, render
from longplay.launch.reports.plots import plots
from longplay.launch.reports.tables import ablation_tables, accuracy_tables, efficiency_tables, runs_table

_ACCURACY = (
    "Metrics on the test split, for the checkpoint that was best in validation: means over seeds ± one "
    "sample standard deviation, with the best of each context length in bold. HR@k is the share of users "
    "whose next item is among the first k; NDCG@k also weights it by its position."
)
_EFFICIENCY = (
    "Memory is that of one rank: of its GPU, or of the whole process on a CPU. Seconds per epoch are the "
    "median step time multiplied by the steps of an epoch. They and events per second exclude validation and "
    "saving. Runs that shared a machine with other work are slower."
)
_FIGURES = ("accuracy-", "efficiency-", "time-", "ablation-")


def write_report(runs: pl.DataFrame, out: Path) -> None:
    """Write report.md, report.html, four CSV files and plots/ into `out`; replace an earlier report.

    Raises:
        OSError: a file cannot be written.
    """
    groups = group_frame(runs)
    pictures = _draw(groups, runs, out / "plots")

    def of(*kinds: str) -> list[Picture]:
        return [picture for kind in kinds for name, picture in pictures.items() if name.startswith(kind)]

    sections = [
        Section(
            title="Accuracy",
            text=_ACCURACY,
            tables=list(accuracy_tables(groups)),
            pictures=of("accuracy-", "time-"),
        ),
        Section(
            title="Efficiency",
            text=_EFFICIENCY,
            tables=list(efficiency_tables(groups)),
            pictures=of("efficiency-"),
        ),
        Section(
            title="Ablation",
            text="As above; the best variant of each model is in bold.",
            tables=list(ablation_tables(groups)),
            pictures=of("ablation-"),
        ),
        Section(title="Runs", text=_unfinished(runs), tables=[runs_table(runs)]),
    ]
    page = {
        "title": f"Report of {', '.join(unique(runs, 'source'))}",
        "text": f"{count_runs(runs)}.",
        "sections": [section for section in sections if section.tables],
    }
    contents = {
        "report.md": render("report.md", **page),
        "report.html": render("report.html", **page),
        "accuracy.csv": accuracy_csv(groups),
        "efficiency.csv": efficiency_csv(groups),
        "ablation.csv": ablation_csv(groups),
        "runs.csv": runs_csv(runs),
    }
    for name, content in contents.items():
        write_text(out / name, content)


def count_runs(runs: pl.DataFrame) -> str:
    """Return the number of runs, in total and in each state: "4 runs: 3 finished, 1 failed"."""
    states = ", ".join(f"{number} {state}" for state, number in Counter(runs["state"]).items())
    return f"{len(runs)} run{'s' if len(runs) > 1 else ''}: {states}"


def _draw(groups: pl.DataFrame, runs: pl.DataFrame, folder: Path) -> dict[str, Picture]:
    """Write the figures, delete those of an earlier report, and return them by name."""
    folder.mkdir(parents=True, exist_ok=True)
    pictures = {}
    with matplotlib.rc_context(MATPLOTLIB):
        for plot in plots(groups, runs):
            name = re.sub(r"[^\w.-]+", "_", plot.name)
            for ending in ("png", "svg"):
                save(plot.figure, folder / f"{name}.{ending}")
            svg = (folder / f"{name}.svg").read_text(encoding="utf-8")
            pictures[name] = Picture(
                title=plot.title,
                caption=plot.caption,
                png=f"plots/{name}.png",
                svg=svg[svg.index("<svg ") :].rstrip(),
            )
    for file in folder.iterdir():
        if file.name.startswith(_FIGURES) and file.suffix in (".png", ".svg") and file.stem not in pictures:
            file.unlink()
    return pictures


def _unfinished(runs: pl.DataFrame) -> str:
    unfinished = runs.filter(pl.col("state") != "finished")
    if unfinished.is_empty():
        return "All are finished."
    return (
        f"{len(unfinished)} of {len(runs)} are not finished. To finish a sweep, run its command again. "
        "To finish a trained run outside a sweep: `longplay evaluate RUN`."
    )
