"""Measure throughput on 1, 2 and 4 ranks of one machine.

    python -m benchmarks.ranks --data data/ml1m

Each rank has one thread and, if the machine has enough cores, its own core. The global batch is the same for
all numbers of ranks. The upper bound is measured as well: independent single-rank runs, one per core, at the
same time. All processes start once and then take turns.
"""

from __future__ import annotations

import argparse
import math
import os
from collections.abc import Callable
from pathlib import Path

from benchmarks.longplay_loop import LongplayLoop
from benchmarks.measure import interleaved, machine, median, spread
from benchmarks.turns import Worker, take_turns, workers
from longplay.distributed.runtime.world import World


def main() -> None:
    """Start torchrun for each number of ranks, alternate the runs and print the medians."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--data", type=Path, required=True, help="a prepared dataset")
    parser.add_argument("--ranks", type=int, nargs="+", default=[1, 2, 4])
    parser.add_argument("--repeats", type=int, default=9)
    parser.add_argument("--steps", type=int, default=10, help="steps per turn")
    parser.add_argument("--recipe", default="mambarec")
    parser.add_argument("--loss", default="bce")
    parser.add_argument("--rows", type=int, default=120)
    parser.add_argument("--first-core", type=int, help=argparse.SUPPRESS)
    parser.add_argument("--turns", type=Path, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.turns:
        take_turns(args.turns, args.first_core, lambda world: _prepare(args, world))
        return
    print(machine())
    cores = len(os.sched_getaffinity(0))
    words = ["--data", str(args.data), "--steps", str(args.steps), "--recipe", args.recipe]
    words += ["--loss", args.loss, "--rows", str(args.rows)]
    with workers() as start:

        def training(world_size: int, core: int = 0) -> Worker:
            return start("benchmarks.ranks", words, world_size=world_size, first_core=core)

        apart = [training(1, core) for core in range(cores)]
        groups = {f"{n} rank(s)": [apart[0] if n == 1 else training(n)] for n in args.ranks}
        groups[f"{cores} runs of 1 rank each"] = apart
        pieces = {name: lambda group=group: _turn(group) for name, group in groups.items()}
        rates = interleaved(pieces, repeats=args.repeats)
    base = median(next(iter(rates.values())))
    for name, values in rates.items():
        middle = median(values)
        print(f"{name:<26} {middle:10,.0f} targets/s  {middle / base:5.2f}  ({spread(values)})")


def _turn(trainings: list[Worker]) -> float:
    """Return the summed targets/s of runs that train at the same time."""
    for training in trainings:
        training.go()
    return math.fsum([training.result() for training in trainings])


def _prepare(args: argparse.Namespace, world: World) -> Callable[[], float]:
    """Return a function that trains for one turn and returns the targets/s of all ranks."""
    words = ["--loss.name", args.loss, "--data.rows_per_step", str(args.rows)]
    own = LongplayLoop(args.data, args.recipe, words, world)
    return lambda: own.targets_per_s(args.steps)


if __name__ == "__main__":
    main()
