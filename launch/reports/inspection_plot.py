"""Draw the history lengths and the item popularity of a dataset."""

from pathlib import Path

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import LogLocator

from longplay.common.atomic import named_errors
from longplay.data_shards.storage.dataset import Dataset
from longplay.data_shards.storage.inspection import Inspection, num_top
from longplay.launch.reports.drawing import label_short_axis, plain_numbers

_BLUE, _ORANGE, _GREEN = "#4477aa", "#cc6633", "#228833"
_NUM_BINS = 40
_NUM_POINTS = 1000


def draw(dataset: Dataset, found: Inspection, path: Path) -> None:
    """Write a PNG with two panels to `path`. Reads no shard.

    Raises:
        OSError: the file cannot be written.
    """
    figure = Figure(figsize=(12, 4.8), dpi=120, layout="constrained")
    lengths, popularity = figure.subplots(1, 2)
    _draw_lengths(lengths, dataset.lengths, found)
    _draw_popularity(popularity, dataset.item_counts, found)
    for axis in (lengths.xaxis, popularity.xaxis, popularity.yaxis):
        label_short_axis(axis)
    for axes in (lengths, popularity):
        axes.grid(color="0.9", linewidth=0.8)
        axes.set_axisbelow(True)
        axes.spines[["top", "right"]].set_visible(False)
        plain_numbers(axes.xaxis)
        plain_numbers(axes.yaxis)
        axes.legend(framealpha=1, edgecolor="none")
    with named_errors(path):
        figure.savefig(path, format="png")


def _draw_lengths(axes: Axes, lengths: np.ndarray, found: Inspection) -> None:
    """Draw a histogram of the lengths whose heights are users per doubling of the length."""
    edges = np.geomspace(lengths.min() - 0.5, lengths.max() + 0.5, _NUM_BINS + 1)
    # Edges at half-integers, so that the bar of a short length counts that length only.
    edges = np.unique(np.ceil(edges - 0.5) + 0.5)
    users, _ = np.histogram(lengths, edges)
    axes.stairs(users / np.log2(edges[1:] / edges[:-1]), edges, fill=True, color=_BLUE)
    median, mean = found.lengths.quantiles["50%"], found.lengths.mean
    axes.axvline(median, color=_ORANGE, label=f"median {median:,}")
    axes.axvline(mean, color=_GREEN, linestyle="--", label=f"mean {mean:,.1f}")
    axes.set(
        xscale="log",
        xlabel="events per user",
        ylabel="users per doubling of the length",
        title=f"History lengths of {found.num_users:,} users",
    )
    axes.xaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))


def _draw_popularity(axes: Axes, counts: np.ndarray, found: Inspection) -> None:
    falling = -np.sort(-counts)
    ranks = np.unique(np.geomspace(1, len(falling), _NUM_POINTS).round().astype(np.int64))
    axes.plot(ranks, falling[ranks - 1], color=_BLUE, linewidth=2)
    shares = found.popularity.top_shares.items()
    for (name, share), color, style in zip(shares, (_ORANGE, _GREEN), ("-", "--"), strict=True):
        rank = num_top(float(name.rstrip("%")) / 100, len(falling))
        label = f"top {name} of items: {share:.1%} of events"
        axes.axvline(rank, color=color, linestyle=style, label=label)
    axes.set(
        xscale="log",
        yscale="log",
        xlabel="item rank",
        ylabel="events per item",
        title=f"Popularity of {found.num_items:,} items",
    )
