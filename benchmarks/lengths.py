"""Plot the cost of an event for context lengths of 250 to 20,000, for MambaRec and SASRec.

    python -m benchmarks.lengths --out benchmarks/results/lengths.png

Every step has the same number of slots. Every row is one window of one long history, so attention spans the
whole context. The histories are random; the cost does not depend on the items.
"""

from __future__ import annotations

import argparse
import tempfile
from pathlib import Path

import numpy as np
import torch

from benchmarks.longplay_loop import LongplayLoop
from benchmarks.measure import interleaved, machine, median
from benchmarks.stream import write_dataset
from longplay.distributed.runtime.world import init_world

_TICKS = [digit * 10.0**power for power in range(-3, 4) for digit in (1, 2, 5)]
_MODELS = {"mambarec": "MambaRec", "sasrec": "SASRec"}


def main() -> None:
    """Measure, print the table and draw the plot."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--lengths", type=int, nargs="+", default=[250, 500, 1000, 2000, 5000, 10_000, 20_000]
    )
    parser.add_argument("--slots", type=int, default=20_000, help="slots per step, at every length")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--blocks", type=int, default=1)
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--models", nargs="+", choices=list(_MODELS), default=list(_MODELS))
    parser.add_argument("--out", type=Path, help="write the plot to this PNG")
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    print(machine())
    with tempfile.TemporaryDirectory() as folder:
        data = Path(folder) / "data"
        write_dataset(data, np.full(24, 2 * max(args.lengths) + 3))
        costs = _measure(args, data)
    print(f"{'us per event':<10}" + "".join(f"{f'L={length}':>10}" for length in args.lengths))
    for name, values in costs.items():
        print(f"{_MODELS[name]:<10}" + "".join(f"{value:10.1f}" for value in values))
        shown = "".join(f"{value / values[0]:10.2f}" for value in values)
        print(f"{'  relative':<10}{shown}   largest over smallest {max(values) / min(values):.2f}")
    if args.out:
        _draw(args, costs)
        print(f"plot in {args.out}")


def _measure(args: argparse.Namespace, data: Path) -> dict[str, list[float]]:
    """Return model -> microseconds per trained event at each length."""
    world = init_world(device="auto")
    pieces = {}
    for length in args.lengths:
        words = ["--context_length", str(length), "--encoder.num_blocks", str(args.blocks)]
        words += ["--data.rows_per_step", str(max(1, args.slots // length)), "--data.num_lanes", "1"]
        words += ["--loss.name", "bce", "--encoder.positional_embedding", "false"]
        for name in args.models:
            own = LongplayLoop(data, name, words, world)
            pieces[f"{name} {length}"] = lambda own=own: 1e6 / own.targets_per_s(1)
    times = interleaved(pieces, repeats=args.repeats)
    return {name: [median(times[f"{name} {length}"]) for length in args.lengths] for name in args.models}


def _draw(args: argparse.Namespace, costs: dict[str, list[float]]) -> None:
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot as plt

    figure, axes = plt.subplots(figsize=(6.4, 4), layout="constrained")
    for name, values in costs.items():
        axes.plot(args.lengths, values, marker="o", label=_MODELS[name])
    axes.set(
        xscale="log", yscale="log", xlabel="context length (events)", ylabel="time per trained event (µs)"
    )
    axes.set_xticks(args.lengths, [f"{length:,}" for length in args.lengths])
    smallest, largest = (each(value for values in costs.values() for value in values) for each in (min, max))
    ticks = [tick for tick in _TICKS if smallest / 2 < tick < 2 * largest]
    axes.set_yticks(ticks, [f"{tick:g}" for tick in ticks])
    axes.minorticks_off()
    axes.set_title(f"{args.slots:,} slots per step, width 64, {args.blocks} block(s)")
    axes.grid(alpha=0.3)
    axes.legend()
    figure.savefig(args.out, dpi=150)
    plt.close(figure)


if __name__ == "__main__":
    main()
