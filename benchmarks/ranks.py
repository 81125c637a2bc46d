"""Throughput on 1, 2 and 4 ranks of one machine, in turns.

python -m benchmarks.ranks --data data/ml1m

Each rank has one thread and one core of its own, as far as there are cores; the global batch is the same.
Beside them as many separate trainings as there are cores, of one rank each and at the same time: what the
machine's cores can do together where nothing is exchanged. All trainings are started once and take turns.
"""

from __future__ import annotations

import argparse
import contextlib
import math
import os
import subprocess
import sys
import tempfile
from pathlib import Path

import torch

from benchmarks.measure import interleaved, machine, median, spread
from benchmarks.own_loop import OwnLoop
from longplay.distributed.collectives import all_reduce_max
from longplay.distributed.world import close_world, free_port, init_world

_WARM_UP_STEPS = 2


def main() -> None:
    """Starts torchrun for each number of ranks in turns and prints the medians."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--data", type=Path, required=True, help="a prepared dataset")
    parser.add_argument("--ranks", type=int, nargs="+", default=[1, 2, 4])
    parser.add_argument("--repeats", type=int, default=9)
    parser.add_argument("--steps", type=int, default=10, help="of one turn")
    parser.add_argument("--recipe", default="mambarec")
    parser.add_argument("--loss", default="bce")
    parser.add_argument("--rows", type=int, default=120)
    parser.add_argument("--core", type=int, help=argparse.SUPPRESS)
    parser.add_argument("--turns", type=Path, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.turns:
        _run_rank(args)
        return
    print(machine())
    cores = len(os.sched_getaffinity(0))
    with contextlib.ExitStack() as stack:

        def start(world_size: int, core: int = 0) -> _Training:
            return stack.enter_context(_Training(args, world_size, core))

        apart = [start(1, core) for core in range(cores)]
        groups = {f"{n} rank(s)": [apart[0] if n == 1 else start(n)] for n in args.ranks}
        groups[f"{cores} trainings of 1 rank each"] = apart
        pieces = {name: lambda group=group: _turn(group) for name, group in groups.items()}
        rates = interleaved(pieces, repeats=args.repeats)
    base = median(next(iter(rates.values())))
    for name, values in rates.items():
        middle = median(values)
        print(f"{name:<26} {middle:10,.0f} targets/s  {middle / base:5.2f}  ({spread(values)})")


def _turn(trainings: list[_Training]) -> float:
    """Targets a second of trainings that have their turn together."""
    for training in trainings:
        training.go()
    return math.fsum([training.rate() for training in trainings])


class _Training:
    """A training under torchrun that does some steps whenever it is told to, and sleeps otherwise."""

    def __init__(self, args: argparse.Namespace, world_size: int, core: int) -> None:
        self._folder = tempfile.TemporaryDirectory()
        turns = Path(self._folder.name) / "turns"
        os.mkfifo(turns)
        command = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", str(world_size)]
        command += ["--master-port", str(free_port()), "-m", "benchmarks.ranks", "--turns", str(turns)]
        command += ["--data", str(args.data), "--steps", str(args.steps), "--recipe", args.recipe]
        command += ["--loss", args.loss, "--rows", str(args.rows), "--core", str(core)]
        self._complaints = (Path(self._folder.name) / "stderr").open("w+")
        self._process = subprocess.Popen(
            command,
            stdout=subprocess.PIPE,
            stderr=self._complaints,
            text=True,
            env=os.environ | {"OMP_NUM_THREADS": "1"},
        )
        # For reading too, or opening would wait for ever where rank 0 fails before it reads.
        self._turns = os.fdopen(os.open(turns, os.O_RDWR), "w")
        self.rate()  # of the steps that do not count

    def go(self) -> None:
        """Give it its turn."""
        self._turns.write("go\n")
        self._turns.flush()

    def rate(self) -> float:
        """Wait for the end of its turn; targets a second of all its ranks."""
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        if not line:
            self._complaints.seek(0)
            raise SystemExit(f"a training failed:\n{self._complaints.read()}")
        return float(line)

    def __enter__(self) -> _Training:
        return self

    def __exit__(self, *error: object) -> None:
        self._turns.close()  # which ends it
        self._process.communicate(timeout=60)
        self._folder.cleanup()


def _run_rank(args: argparse.Namespace) -> None:
    """One rank of a training; rank 0 reads when it is its turn and prints the rate."""
    torch.set_num_threads(1)
    cores = sorted(os.sched_getaffinity(0))
    os.sched_setaffinity(0, {cores[(args.core + int(os.environ["LOCAL_RANK"])) % len(cores)]})
    world = init_world(device="auto")
    turns = args.turns.open() if world.is_rank0 else None
    words = ["--loss.name", args.loss, "--data.rows_per_step", str(args.rows)]
    own = OwnLoop(args.data, args.recipe, words, world)
    number = torch.tensor(_WARM_UP_STEPS, device=world.device)
    while number:
        rate = own.targets_per_s(int(number))
        if turns is not None:
            print(rate, flush=True)
            number.fill_(args.steps if turns.readline() else 0)
        else:
            number.zero_()
        all_reduce_max(number, world)  # rank 0 says it to all
    close_world()


if __name__ == "__main__":
    main()
