"""Building blocks of figures: panels, axes, points with error bars, legends and files."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import matplotlib
import polars as pl
from matplotlib.axes import Axes
from matplotlib.axis import Axis
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import FixedLocator, FuncFormatter, LogLocator, MaxNLocator, NullFormatter, NullLocator
from matplotlib.typing import LineStyleType

from longplay.models.base.registry import ENCODERS

# Okabe and Ito's colors, which color-blind readers can tell apart, with markers for grayscale print.
_COLORS = ("#E69F00", "#D55E00", "#009E73", "#56B4E9", "#0072B2", "#CC79A7", "#000000", "#8A8A8A")
_MARKERS = ("s", "D", "v", "^", "o", "P", "X", "*")
_LINES: tuple[LineStyleType, ...] = ("-", "--", ":", "-.")
_DODGE = 0.012  # relative shift between models along the length axis, so that error bars do not overlap
_CHARACTERS_PER_INCH = 12
MATPLOTLIB: dict[Any, Any] = {
    **{"svg.fonttype": "path", "svg.hashsalt": "longplay", "font.size": 10},
    "text.parse_math": False,  # names may hold $
}
"""Settings under which figures are drawn and saved, so that the same runs give the same bytes."""


class Style(NamedTuple):
    color: str
    marker: str
    line: LineStyleType


class Point(NamedTuple):
    """A mean at `x`, with its sample standard deviation."""

    x: float
    mean: float | None
    sd: float | None


def styles(groups: pl.DataFrame) -> dict[str, Style]:
    """Return a style per label, in the order of the tables: color by model, line by settings of a model."""
    found: dict[str, Style] = {}
    lines: dict[str, int] = {}
    encoders = list(ENCODERS)
    for model, label in groups.select("model", "label").unique(maintain_order=True).rows():
        at = encoders.index(model) if model in encoders else len(encoders)
        line = lines[model] = lines.get(model, -1) + 1
        found[label] = Style(
            _COLORS[at % len(_COLORS)], _MARKERS[at % len(_MARKERS)], _LINES[line % len(_LINES)]
        )
    return found


def save(figure: Figure, path: Path) -> None:
    """Write a figure as PNG or SVG, by the extension of `path`; the same runs give the same bytes.

    Raises:
        OSError: the file cannot be written.
    """
    with matplotlib.rc_context(MATPLOTLIB):
        if path.suffix == ".svg":
            nothing = {"Date": None, "Creator": None, "Format": None, "Type": None}
            figure.savefig(path, metadata=nothing)
        else:
            figure.savefig(path, dpi=130)


def panels(count: int, *, columns: int, width: float, sharey: bool = False) -> tuple[Figure, list[Axes]]:
    """Return a figure of `count` panels, at most `columns` in a row, each `width` inches wide."""
    columns = min(columns, count)
    rows = -(-count // columns)
    figure = Figure(figsize=(max(6.5, width * columns), 3.8 * rows + 0.5), layout="constrained")
    cells = list(figure.subplots(rows, columns, squeeze=False, sharey=sharey).flat)
    for axes in cells[count:]:
        axes.set_visible(False)
    return figure, cells[:count]


def against_length(axes: Axes, groups: pl.DataFrame, column: str, style: Mapping[str, Style]) -> None:
    """Draw a line per label over a logarithmic axis of lengths; with a single length, one point per label."""
    lengths = groups["context_length"].unique().sort().to_list()
    labels = groups["label"].unique(maintain_order=True).to_list()
    for number, label in enumerate(labels):
        shift = 1 + _DODGE * (number - (len(labels) - 1) / 2)
        same = groups.filter(pl.col("label") == label)
        means = [
            Point(number if len(lengths) == 1 else length * shift, mean, sd)
            for length, mean, sd in same.select("context_length", column, f"{column}_sd").rows()
        ]
        points(axes, means, style[label])
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
    tidy(axes)


def points(axes: Axes, means: Sequence[Point], style: Style) -> None:
    """Draw the points that have a mean, joined by a line, with error bars if any point has a deviation."""
    there = [(x, mean, sd or 0.0) for x, mean, sd in means if mean is not None]
    deviations = [sd for _, _, sd in there]
    axes.errorbar(
        [x for x, _, _ in there],
        [mean for _, mean, _ in there],
        yerr=deviations if any(deviations) else None,
        color=style.color,
        marker=style.marker,
        linestyle=style.line,
        linewidth=1.6,
        markersize=6,
        capsize=3,
        elinewidth=1,
    )


def time_axis(axes: Axes, ends: Sequence[float]) -> None:
    """Start the time axis at zero; make it logarithmic if some runs take many times as long as others."""
    if min(ends) > 0 and max(ends) / min(ends) > 8:
        axes.set_xscale("log")
        axes.xaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
    else:
        axes.set_xlim(0, 1.04 * max(ends))
    plain_numbers(axes.xaxis)


def spread_or_zero(axes: Axes, means: pl.Series, sds: pl.Series) -> None:
    """Make the value axis logarithmic if means are far apart; else start it at zero."""
    values = means.drop_nulls().to_list()
    if values and min(values) > 0 and max(values) / min(values) > 15:
        axes.set_yscale("log")
        axes.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
    else:
        tops = (means + sds.fill_null(0.0)).drop_nulls().to_list()
        axes.set_ylim(0, 1.08 * max(tops, default=1.0))
    plain_numbers(axes.yaxis)


def plain_numbers(axis: Axis) -> None:
    """Format the ticks of an axis as 1,000 instead of 10³."""
    axis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:,.10g}"))
    axis.set_minor_formatter(NullFormatter())


def label_short_axis(axis: Axis) -> None:
    """Choose ticks that have labels for a logarithmic axis of fewer than two powers of ten."""
    low, high = axis.get_view_interval()
    if high < 8 * low:
        axis.set_major_locator(MaxNLocator(5, steps=[1, 2, 5, 10], integer=True, min_n_ticks=1))
    elif high < 100 * low:
        axis.set_major_locator(LogLocator(subs=(1, 2, 5)))


def tidy(axes: Axes) -> None:
    """Draw a light grid, drop the frame's right and top, and choose round ticks."""
    axes.grid(color="0.9", linewidth=0.8)
    axes.set_axisbelow(True)
    axes.spines[["top", "right"]].set_visible(False)
    if axes.get_yscale() == "linear":
        axes.yaxis.set_major_locator(MaxNLocator(6, steps=[1, 2, 2.5, 5, 10]))


def legend(figure: Figure, style: Mapping[str, Style]) -> None:
    """Draw a legend above the panels, row by row in the order of the tables."""
    fitting = int(figure.get_figwidth() * _CHARACTERS_PER_INCH / (max(map(len, style)) + 6))
    columns = max(1, min(len(style), fitting))
    # matplotlib fills a legend by column.
    labels = [label for first in range(columns) for label in list(style)[first::columns]]
    handles = [
        Line2D([], [], color=style[label].color, marker=style[label].marker, linestyle=style[label].line)
        for label in labels
    ]
    figure.legend(handles, labels, loc="outside upper center", ncols=columns, frameon=False)
