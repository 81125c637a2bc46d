"""Measure throughput on 1, 2 and 4 ranks of one machine.

python -m benchmarks.ranks --data data/ml1m

Each rank has one thread, and one core while there are enough; the global batch is always the same. The upper
bound is measured too: one separate single-rank run per core, all at the same time, which exchange nothing.
All runs are started once and then alternate.
"""

from __future__ import annotations

import argparse
import math
import os
from collections.abc import Callable
from pathlib import Path

from benchmarks.measure import interleaved, machine, median, spread
from benchmarks.own_loop import OwnLoop
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
        groups[f"{cores} trainings of 1 rank each"] = apart
        pieces = {name: lambda group=group: _turn(group) for name, group in groups.items()}
        rates = interleaved(pieces, repeats=args.repeats)
    base = median(next(iter(rates.values())))
    for name, values in rates.items():
        middle = median(values)
        print(f"{name:<26} {middle:10,.0f} targets/s  {middle / base:5.2f}  ({spread(values)})")


def _turn(trainings: list[Worker]) -> float:
    """Return the summed targets/s of runs that work at the same time."""
    for training in trainings:
        training.go()
    return math.fsum([training.result() for training in trainings])


def _prepare(args: argparse.Namespace, world: World) -> Callable[[], float]:
    """Return a function that trains for one turn and returns the targets/s of all ranks."""
    words = ["--loss.name", args.loss, "--data.rows_per_step", str(args.rows)]
    own = OwnLoop(args.data, args.recipe, words, world)
    return lambda: own.targets_per_s(args.steps)


if __name__ == "__main__":
    main()
