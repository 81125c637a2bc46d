"""Draw docs/assets/overview.svg, the figure of the README, from the numbers in the committed result pages.

python docs/draw_overview.py
"""

from __future__ import annotations

import re
from pathlib import Path

import matplotlib

matplotlib.use("svg")
from matplotlib import pyplot as plt
from matplotlib.axes import Axes

REPOSITORY = Path(__file__).resolve().parents[1]
COSTS = REPOSITORY / "benchmarks" / "results" / "2026-11-25-speed.md"
ACCURACY = REPOSITORY / "docs" / "results" / "ml1m.md"
OUT = REPOSITORY / "docs" / "assets" / "overview.svg"
COLORS = {
    "GRU4Rec": "#7a8798",
    "SASRec": "#e4793a",
    "RecMamba": "#2f7f6f",
    "MambaRec": "#3158b8",
    "MoEMaTrRec": "#8a5fb0",
}


def costs() -> tuple[list[int], dict[str, list[float]]]:
    """Return the context lengths, and by model the microseconds per trained event at each."""
    text = COSTS.read_text()
    header = re.search(r"^us per event(.*)$", text, re.MULTILINE)
    assert header is not None
    lengths = [int(number) for number in re.findall(r"L=(\d+)", header[1])]
    rows = re.findall(rf"^(MambaRec|SASRec)((?: +[\d.]+){{{len(lengths)}}})$", text, re.MULTILINE)
    return lengths, {name: [float(value) for value in values.split()] for name, values in rows}


def accuracy() -> dict[str, float]:
    """Return by model the `full_unseen` NDCG@10 of the five models at one budget."""
    rows = re.findall(r"^\| (\w+) \| (0\.\d{4} \| .*) \|$", ACCURACY.read_text(), re.MULTILINE)
    return {name: float(cells.split(" | ")[3]) for name, cells in rows if name in COLORS}


def draw_costs(axes: Axes) -> None:
    lengths, by_model = costs()
    for name, values in by_model.items():
        axes.plot(lengths, values, marker="o", color=COLORS[name], linewidth=2)
        axes.annotate(
            f"{name}  {values[-1] / values[0]:.1f}×",
            (lengths[-1], values[-1]),
            xytext=(-8, 9),
            textcoords="offset points",
            ha="right",
            color=COLORS[name],
            weight="bold",
        )
    axes.set(xscale="log", yscale="log", ylim=(8, 130))
    axes.set(xlabel="context length (events)", ylabel="time per trained event (µs)")
    axes.set_xticks(lengths, [f"{length:,}" for length in lengths])
    axes.set_yticks([10, 20, 50, 100], ["10", "20", "50", "100"])
    axes.minorticks_off()
    axes.grid(alpha=0.25)
    axes.set_title("Cost of an event, 250 to 20,000 events of context", loc="left")


def draw_accuracy(axes: Axes) -> None:
    values = accuracy()
    names = list(values)
    heights = [values[name] for name in names]
    bars = axes.bar(names, heights, yerr=0.004, color=[COLORS[name] for name in names], width=0.62, capsize=4)
    axes.bar_label(bars, [f"{value:.3f}" for value in heights], padding=3)
    axes.set(ylabel="NDCG@10, all unseen items ranked", ylim=(0, 0.21))
    axes.grid(axis="y", alpha=0.25)
    axes.set_axisbelow(True)
    axes.set_title("MovieLens-1M test split, 6 epochs, one seed", loc="left")


def main() -> None:
    plt.rcParams |= {"svg.hashsalt": "longplay", "font.size": 10.5, "axes.titlesize": 11.5}
    plt.rcParams |= {"axes.spines.top": False, "axes.spines.right": False}
    figure, (left, right) = plt.subplots(ncols=2, figsize=(11.5, 4), layout="constrained")
    draw_costs(left)
    draw_accuracy(right)
    figure.savefig(OUT, metadata={"Date": None})
    print(f"wrote {OUT.relative_to(REPOSITORY)}")


if __name__ == "__main__":
    main()
