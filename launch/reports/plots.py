"""The figures of a report: metrics and costs against the context length, accuracy against training time."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import matplotlib
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import FixedLocator, FuncFormatter, LogLocator, MaxNLocator, NullFormatter, NullLocator
from matplotlib.typing import LineStyleType

from longplay.launch.reports.data import Run
from longplay.launch.reports.groups import Group, Stat, datasets, kinds
from longplay.launch.reports.tables import kind_name

# Okabe and Ito's colours, which colour-blind readers tell apart, and markers for print in grey.
_STYLES = {
    "gru4rec": ("#E69F00", "s"),
    "sasrec": ("#0072B2", "o"),
    "recmamba": ("#56B4E9", "^"),
    "mambarec": ("#D55E00", "D"),
    "moematrrec": ("#009E73", "v"),
}
_OTHERS = ("#CC79A7", "#000000", "#8A8A8A")
_LINES: tuple[LineStyleType, ...] = ("-", "--", ":", "-.")
_DODGE = 0.012  # of a decade or so, between models, so that error bars do not hide each other
_CHARACTERS_PER_INCH = 12
_MATPLOTLIB: dict[Any, Any] = {"svg.fonttype": "path", "svg.hashsalt": "longplay", "font.size": 10}
Value = Callable[[Group], Stat | None]


@dataclass(frozen=True, kw_only=True)
class Plot:
    """A figure with the name of its files, a title and what it shows."""

    name: str
    title: str
    caption: str
    figure: Figure


def plots(groups: Sequence[Group]) -> Iterator[Plot]:
    """Every figure that the runs have something to show in."""
    with matplotlib.rc_context(_MATPLOTLIB):
        study = [group for group in groups if group.variant is None]
        for dataset in datasets(study):
            here = [group for group in study if group.dataset == dataset]
            if any(run.test for group in here for run in group.runs):
                yield _accuracy(dataset, here)
            if any(group.cost("events_per_s") for group in here):
                yield _efficiency(dataset, here)
            if any(run.curve.values for group in here for run in group.runs):
                yield _curves(dataset, here)
        ablations = [group for group in groups if group.variant is not None]
        for grid in dict.fromkeys(group.grid for group in ablations):
            here = [group for group in ablations if group.grid == grid]
            if any(run.test for group in here for run in group.runs):
                yield _ablation(grid, here)


def save(plot: Plot, path: str, kind: str) -> None:
    """Write a figure as "png" or "svg", the same bytes for the same runs.

    Raises:
        OSError: it cannot be written.
    """
    with matplotlib.rc_context(_MATPLOTLIB):
        if kind == "svg":
            nothing = {"Date": None, "Creator": None, "Format": None, "Type": None}
            plot.figure.savefig(path, format="svg", metadata=nothing)
        else:
            plot.figure.savefig(path, format="png", dpi=130)


# ---------------------------------------------------------------------- figures


def _accuracy(dataset: str, groups: Sequence[Group]) -> Plot:
    shown = [kind for kind in kinds(groups) if kind != "full"]
    figure = Figure(figsize=(10, 3.9 * len(shown) + 0.5), layout="constrained")
    panels = figure.subplots(len(shown), 2, squeeze=False)
    for row, kind in zip(panels, shown, strict=True):
        for axes, name in zip(row, ("hit@10", "ndcg@10"), strict=True):
            _against_length(axes, groups, lambda group, k=kind, n=name: group.metric(k, n))
            axes.set_ylabel(f"{name.upper().replace('HIT', 'HR')}, test split")
            axes.set_title(f"among {kind_name(kind)}", fontsize=10)
    if len({group.context_length for group in groups}) > 1:
        _legend(figure, groups)
    return Plot(
        name=f"accuracy-{dataset}",
        title=f"{dataset}: accuracy against context length",
        caption="Means over seeds; bars are one sample standard deviation. A model without a point "
        "has no evaluated run at that length.",
        figure=figure,
    )


def _efficiency(dataset: str, groups: Sequence[Group]) -> Plot:
    panels: list[tuple[str, str]] = [
        ("events_per_s", "training throughput (events/s)"),
        ("train_peak_gib", "peak memory in training (GiB)"),
        ("seconds_per_epoch", "training (s per epoch)"),
        ("eval_s", "evaluation of the test split (s)"),
    ]
    panels = [(name, label) for name, label in panels if any(group.cost(name) for group in groups)]
    figure, cells = _panels(len(panels), columns=2, width=5)
    for axes, (name, label) in zip(cells, panels, strict=True):
        _against_length(axes, groups, lambda group, n=name: group.cost(n))
        axes.set_ylabel(label)
        _spread_or_zero(axes, [stat for group in groups if (stat := group.cost(name))])
    if len({group.context_length for group in groups}) > 1:
        _legend(figure, groups)
    return Plot(
        name=f"efficiency-{dataset}",
        title=f"{dataset}: throughput and memory against context length",
        caption="Medians over a run's steps, means over seeds; bars are one sample standard deviation.",
        figure=figure,
    )


def _curves(dataset: str, groups: Sequence[Group]) -> Plot:
    lengths = sorted({g.context_length for g in groups if any(run.curve.values for run in g.runs)})
    figure, panels = _panels(len(lengths), columns=3, width=4.2, sharey=True)
    metrics: set[str] = set()
    for at, (axes, length) in enumerate(zip(panels, lengths, strict=True)):
        here = [group for group in groups if group.context_length == length]
        runs = [(group, run) for group in here for run in group.runs if run.curve.values]
        longest = max(run.curve.seconds[-1] for _, run in runs)
        unit, seconds = ("h", 3600) if longest > 3 * 3600 else ("min", 60) if longest > 180 else ("s", 1)
        for group, run in runs:
            metrics.add(run.curve.metric)
            _curve(axes, group, run, groups, seconds)
        axes.set_xlabel(f"training time ({unit})")
        axes.set_title(f"context length {length:,}", fontsize=10)
        _tidy(axes)
        _time_axis(axes, [run.curve.seconds[-1] / seconds for _, run in runs])
        if at % 3 == 0:
            axes.set_ylabel(" and ".join(sorted(metrics)) + ",\nvalidation split")
    _legend(figure, groups)
    return Plot(
        name=f"time-{dataset}",
        title=f"{dataset}: accuracy against training time",
        caption="One curve per run; a circle marks the best validation, dashes a run that is not finished. "
        "The time is that of training steps, without validations and saving.",
        figure=figure,
    )


def _curve(axes: Axes, group: Group, run: Run, groups: Sequence[Group], unit: float) -> None:
    color, _, _ = _style(group, groups)
    line = "-" if run.state == "finished" else "--"
    times = [seconds / unit for seconds in run.curve.seconds]
    axes.plot(times, run.curve.values, color=color, linestyle=line, linewidth=1.3, alpha=0.85)
    top = max(range(len(times)), key=run.curve.values.__getitem__)
    axes.plot(times[top], run.curve.values[top], "o", color=color, markersize=6, markerfacecolor="white")


def _time_axis(axes: Axes, ends: Sequence[float]) -> None:
    """From zero, or logarithmic where some runs take many times as long as others."""
    if min(ends) > 0 and max(ends) / min(ends) > 8:
        axes.set_xscale("log")
        axes.xaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
        axes.xaxis.set_minor_formatter(NullFormatter())
    else:
        axes.set_xlim(0, 1.04 * max(ends))
    axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:,.10g}"))


def _ablation(grid: str, groups: Sequence[Group]) -> Plot:
    places = list(dict.fromkeys(group.place for group in groups))
    figure, panels = _panels(len(places), columns=2, width=5)
    setting = grid.replace("_", " ")
    for axes, place in zip(panels, places, strict=True):
        here = [group for group in groups if group.place == place]
        variants = list(dict.fromkeys(str(group.variant) for group in here))
        labels = list(dict.fromkeys(group.label for group in here))
        for number, label in enumerate(labels):
            same = [group for group in here if group.label == label]
            shift = 0.06 * (number - (len(labels) - 1) / 2)
            points = [
                (variants.index(str(group.variant)) + shift, stat)
                for group in same
                if (stat := group.metric("full_unseen", "ndcg@10"))
            ]
            _points(axes, points, same[0], groups)
        axes.set_xticks(range(len(variants)), variants)
        axes.set_xlim(-0.5, len(variants) - 0.5)
        axes.set(xlabel=setting, ylabel="NDCG@10, test split")
        axes.set_title(f"{place[0]}, context length {place[1]:,}", fontsize=10)
        _tidy(axes)
    _legend(figure, groups)
    return Plot(
        name=f"ablation-{grid}",
        title=f"Ablation: {setting}",
        caption=f"Ranked among {kind_name('full_unseen')}; bars are one sample standard deviation.",
        figure=figure,
    )


# ---------------------------------------------------------------------- parts


def _panels(count: int, *, columns: int, width: float, sharey: bool = False) -> tuple[Figure, list[Axes]]:
    """A figure of so many panels, at most `columns` side by side, each `width` inches wide."""
    columns = min(columns, count)
    rows = -(-count // columns)
    figure = Figure(figsize=(max(6.5, width * columns), 3.8 * rows + 0.5), layout="constrained")
    panels = list(figure.subplots(rows, columns, squeeze=False, sharey=sharey).flat)
    for axes in panels[count:]:
        axes.set_visible(False)
    return figure, panels[:count]


def _against_length(axes: Axes, groups: Sequence[Group], value: Value) -> None:
    """Lines over a logarithmic axis of context lengths; models side by side where there is one length."""
    lengths = sorted({group.context_length for group in groups})
    labels = list(dict.fromkeys(group.label for group in groups))
    for number, label in enumerate(labels):
        same = [group for group in groups if group.label == label]
        shift = number - (len(labels) - 1) / 2
        points = [
            (number if len(lengths) == 1 else group.context_length * (1 + _DODGE * shift), stat)
            for group in same
            if (stat := value(group))
        ]
        _points(axes, points, same[0], groups)
    if len(lengths) == 1:
        axes.set_xticks(range(len(labels)), labels, rotation=20, ha="right")
        axes.set_xlim(-0.6, len(labels) - 0.4)
        axes.set_xlabel(f"context length {lengths[0]:,}")
    else:
        axes.set_xscale("log")
        axes.xaxis.set_major_locator(FixedLocator(lengths))
        axes.xaxis.set_minor_locator(NullLocator())
        axes.xaxis.set_major_formatter(FuncFormatter(lambda length, _: f"{length:,.0f}"))
        axes.set_xlim(lengths[0] / 1.15, lengths[-1] * 1.15)
        axes.set_xlabel("context length (events)")
    _tidy(axes)


def _points(axes: Axes, points: Sequence[tuple[float, Stat]], group: Group, groups: Sequence[Group]) -> None:
    color, marker, line = _style(group, groups)
    axes.errorbar(
        [at for at, _ in points],
        [stat.mean for _, stat in points],
        yerr=[stat.sd or 0.0 for _, stat in points] if any(stat.sd for _, stat in points) else None,
        color=color,
        marker=marker,
        linestyle=line,
        linewidth=1.6,
        markersize=6,
        capsize=3,
        elinewidth=1,
    )


def _spread_or_zero(axes: Axes, stats: Sequence[Stat]) -> None:
    """A logarithmic axis for means that are far apart, else one from zero that has room for the bars."""
    values = [stat.mean for stat in stats]
    if values and min(values) > 0 and max(values) / min(values) > 15:
        axes.set_yscale("log")
        axes.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
        axes.yaxis.set_minor_formatter(NullFormatter())
    else:
        axes.set_ylim(0, 1.08 * max((stat.mean + (stat.sd or 0.0) for stat in stats), default=1.0))
    axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:,.10g}"))


def _tidy(axes: Axes) -> None:
    axes.grid(color="0.9", linewidth=0.8)
    axes.set_axisbelow(True)
    axes.spines[["top", "right"]].set_visible(False)
    if axes.get_yscale() == "linear":
        axes.yaxis.set_major_locator(MaxNLocator(6, steps=[1, 2, 2.5, 5, 10]))


def _style(group: Group, groups: Sequence[Group]) -> tuple[str, str, LineStyleType]:
    """Colour and marker by model; the line tells a model's settings apart."""
    labels = list(dict.fromkeys(other.label for other in groups if other.model == group.model))
    strange = [other.model for other in groups if other.model not in _STYLES]
    color, marker = _STYLES.get(group.model) or (
        _OTHERS[list(dict.fromkeys(strange)).index(group.model) % len(_OTHERS)],
        "P",
    )
    return color, marker, _LINES[labels.index(group.label) % len(_LINES)]


def _legend(figure: Figure, groups: Sequence[Group]) -> None:
    """Above the panels, in the order of the tables."""
    seen: dict[str, Line2D] = {}
    for group in groups:
        color, marker, line = _style(group, groups)
        seen.setdefault(group.label, Line2D([], [], color=color, marker=marker, linestyle=line))
    fitting = int(figure.get_figwidth() * _CHARACTERS_PER_INCH / (max(map(len, seen)) + 6))
    columns = max(1, min(len(seen), fitting))
    by_row = [list(seen)[first::columns] for first in range(columns)]  # a legend is filled by column
    labels = [label for column in by_row for label in column]
    handles = [seen[label] for label in labels]
    figure.legend(handles, labels, loc="outside upper center", ncols=columns, frameon=False)
