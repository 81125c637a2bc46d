"""The figures of a report: metrics and costs against context length, accuracy against training time."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import polars as pl
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from longplay.launch.reports.data import Row
from longplay.launch.reports.drawing import (
    Point,
    Style,
    against_length,
    legend,
    panels,
    points,
    spread_or_zero,
    styles,
    tidy,
    time_axis,
)
from longplay.launch.reports.groups import kinds, unique
from longplay.launch.reports.names import kind_name, metric_name

_COSTS = {
    "events_per_s": "training throughput (events/s)",
    "train_peak_gib": "peak memory in training (GiB)",
    "seconds_per_epoch": "training (s per epoch)",
    "eval_s": "evaluation of the test split (s)",
}


@dataclass(frozen=True, kw_only=True)
class Plot:
    """A figure with the name of its files, its title and its caption."""

    name: str
    title: str
    caption: str
    figure: Figure


def plots(groups: pl.DataFrame, runs: pl.DataFrame) -> Iterator[Plot]:
    """Yield every figure that has at least one point.

    Args:
        groups: the frame of `group_frame`, whose column `member` refers to `runs`.
    """
    study = groups.filter(pl.col("variant").is_null())
    for dataset in unique(study, "dataset"):
        here = study.filter(pl.col("dataset") == dataset)
        if here["evaluated"].any():
            yield _accuracy(dataset, here)
        if here["events_per_s"].count():
            yield _efficiency(dataset, here)
        curves = [
            (label, run)
            for label, members in here.select("label", "member").rows()
            for run in runs[members].iter_rows(named=True)
            if run["curve_values"]
        ]
        if curves:
            yield _curves(dataset, here, curves)
    ablations = groups.filter(pl.col("variant").is_not_null())
    for grid in unique(ablations, "grid"):
        here = ablations.filter(pl.col("grid") == grid)
        if here["evaluated"].any():
            yield _ablation(grid, here)


def _accuracy(dataset: str, groups: pl.DataFrame) -> Plot:
    shown = [kind for kind in kinds(groups) if kind != "full"]
    style = styles(groups)
    figure = Figure(figsize=(10, 3.9 * len(shown) + 0.5), layout="constrained")
    grid = figure.subplots(len(shown), 2, squeeze=False)
    for row, kind in zip(grid, shown, strict=True):
        for axes, name in zip(row, ("hit@10", "ndcg@10"), strict=True):
            against_length(axes, groups, f"{kind}/{name}", style)
            axes.set_ylabel(f"{metric_name(name)}, test split")
            axes.set_title(f"among {kind_name(kind)}", fontsize=10)
    if groups["context_length"].n_unique() > 1:
        legend(figure, style)
    return Plot(
        name=f"accuracy-{dataset}",
        title=f"{dataset}: accuracy against context length",
        caption="Means over seeds; bars are one sample standard deviation. A model without a point "
        "has no evaluated run at that length.",
        figure=figure,
    )


def _efficiency(dataset: str, groups: pl.DataFrame) -> Plot:
    shown = {name: label for name, label in _COSTS.items() if groups[name].count()}
    style = styles(groups)
    figure, cells = panels(len(shown), columns=2, width=5)
    for axes, (name, label) in zip(cells, shown.items(), strict=True):
        against_length(axes, groups, name, style)
        axes.set_ylabel(label)
        spread_or_zero(axes, groups[name], groups[f"{name}_sd"])
    if groups["context_length"].n_unique() > 1:
        legend(figure, style)
    return Plot(
        name=f"efficiency-{dataset}",
        title=f"{dataset}: throughput and memory against context length",
        caption="Medians over a run's steps, means over seeds; bars are one sample standard deviation.",
        figure=figure,
    )


def _curves(dataset: str, groups: pl.DataFrame, curves: Sequence[tuple[str, Row]]) -> Plot:
    style = styles(groups)
    lengths = sorted({run["context_length"] for _, run in curves})
    figure, cells = panels(len(lengths), columns=3, width=4.2, sharey=True)
    metrics: set[str] = set()
    for at, (axes, length) in enumerate(zip(cells, lengths, strict=True)):
        here = [(label, run) for label, run in curves if run["context_length"] == length]
        ends = [run["curve_seconds"][-1] for _, run in here]
        unit, seconds = ("h", 3600) if max(ends) > 3 * 3600 else ("min", 60) if max(ends) > 180 else ("s", 1)
        for label, run in here:
            metrics.add(run["curve_metric"])
            _curve(axes, run, style[label], seconds)
        axes.set_xlabel(f"training time ({unit})")
        axes.set_title(f"context length {length:,}", fontsize=10)
        tidy(axes)
        time_axis(axes, [end / seconds for end in ends])
        if at % 3 == 0:
            axes.set_ylabel(" and ".join(sorted(metrics)) + ",\nvalidation split")
    legend(figure, style)
    return Plot(
        name=f"time-{dataset}",
        title=f"{dataset}: accuracy against training time",
        caption="One curve per run; a circle marks the best validation. Unfinished runs are faint. "
        "The time is that of training steps only, without validation and saving.",
        figure=figure,
    )


def _curve(axes: Axes, run: Row, style: Style, unit: float) -> None:
    strength = 0.9 if run["state"] == "finished" else 0.4
    times, values = [seconds / unit for seconds in run["curve_seconds"]], run["curve_values"]
    axes.plot(times, values, color=style.color, linestyle=style.line, linewidth=1.3, alpha=strength)
    top = max(range(len(times)), key=values.__getitem__)
    axes.plot(
        times[top], values[top], "o", color=style.color, markersize=6, markerfacecolor="white", alpha=strength
    )


def _ablation(grid: str, groups: pl.DataFrame) -> Plot:
    places = groups.partition_by("dataset", "context_length", maintain_order=True)
    style = styles(groups)
    figure, cells = panels(len(places), columns=2, width=5)
    setting = grid.replace("_", " ")
    for axes, here in zip(cells, places, strict=True):
        variants, labels = unique(here, "variant"), unique(here, "label")
        for number, label in enumerate(labels):
            shift = 0.06 * (number - (len(labels) - 1) / 2)
            same = here.filter(pl.col("label") == label)
            columns = same.select("variant", "full_unseen/ndcg@10", "full_unseen/ndcg@10_sd")
            means = [Point(variants.index(variant) + shift, mean, sd) for variant, mean, sd in columns.rows()]
            points(axes, means, style[label])
        axes.set_xticks(range(len(variants)), variants)
        axes.set_xlim(-0.5, len(variants) - 0.5)
        axes.set(xlabel=setting, ylabel="NDCG@10, test split")
        dataset, length = here.row(0, named=True)["dataset"], here.row(0, named=True)["context_length"]
        axes.set_title(f"{dataset}, context length {length:,}", fontsize=10)
        tidy(axes)
    legend(figure, style)
    return Plot(
        name=f"ablation-{grid}",
        title=f"Ablation: {setting}",
        caption=f"Ranked among {kind_name('full_unseen')}; bars are one sample standard deviation.",
        figure=figure,
    )
