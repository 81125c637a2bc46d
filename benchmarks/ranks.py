"""Throughput on 1, 2 and 4 ranks of one machine, in turns.

python -m benchmarks.ranks --data data/ml1m

Each rank has one thread and one core of its own, as far as there are cores; the global batch is the same.
Beside them as many separate trainings as there are cores, of one rank each and at the same time: what the
machine's cores can do together where nothing is exchanged.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import torch

from benchmarks.measure import interleaved, machine, median, spread
from benchmarks.own_loop import OwnLoop
from longplay.distributed.world import close_world, free_port, init_world

_WARM_UP_STEPS = 2


def main() -> None:
    """Starts torchrun for each number of ranks in turns and prints the medians."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--data", type=Path, required=True, help="a prepared dataset")
    parser.add_argument("--ranks", type=int, nargs="+", default=[1, 2, 4])
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--steps", type=int, default=8)
    parser.add_argument("--recipe", default="mambarec")
    parser.add_argument("--loss", default="bce")
    parser.add_argument("--rows", type=int, default=120)
    parser.add_argument("--core", type=int, help=argparse.SUPPRESS)
    parser.add_argument("--rank", action="store_true", help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.rank:
        _run_rank(args)
        return
    print(machine())
    pieces: dict[str, Callable[[], float]] = {}
    for world_size in args.ranks:
        pieces[f"{world_size} rank(s)"] = lambda w=world_size: math.fsum(_rates(args, world_size=w))
    cores = len(os.sched_getaffinity(0))
    ceiling = f"{cores} trainings of 1 rank each"
    pieces[ceiling] = lambda: math.fsum(_rates(args, world_size=1, at_once=cores))
    rates = interleaved(pieces, repeats=args.repeats)
    base = median(next(iter(rates.values())))
    for name, values in rates.items():
        middle = median(values)
        print(f"{name:<26} {middle:10,.0f} targets/s  {middle / base:5.2f}  ({spread(values)})")


def _rates(args: argparse.Namespace, *, world_size: int, at_once: int = 1) -> list[float]:
    """Targets a second of some trainings that run at the same time, each on `world_size` ranks."""
    processes = []
    for core in range(at_once):
        command = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", str(world_size)]
        command += ["--master-port", str(free_port()), "-m", "benchmarks.ranks", "--rank"]
        command += ["--data", str(args.data), "--steps", str(args.steps), "--recipe", args.recipe]
        command += ["--loss", args.loss, "--rows", str(args.rows), "--core", str(core)]
        environment = os.environ | {"OMP_NUM_THREADS": "1"}
        processes.append(
            subprocess.Popen(
                command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=environment
            )
        )
    rates = []
    for process in processes:
        printed, complaints = process.communicate(timeout=900)
        if process.returncode:
            raise SystemExit(f"{world_size} ranks failed:\n{complaints}")
        rates.append(json.loads(printed.splitlines()[-1]))
    return rates


def _run_rank(args: argparse.Namespace) -> None:
    """One rank of one start; rank 0 prints the rate."""
    torch.set_num_threads(1)
    cores = sorted(os.sched_getaffinity(0))
    os.sched_setaffinity(0, {cores[(args.core + int(os.environ["LOCAL_RANK"])) % len(cores)]})
    world = init_world(device="auto")
    words = ["--loss.name", args.loss, "--data.rows_per_step", str(args.rows)]
    own = OwnLoop(args.data, args.recipe, words, world)
    own.steps(_WARM_UP_STEPS)
    rate = own.targets_per_s(args.steps)
    if world.is_rank0:
        print(json.dumps(rate), flush=True)
    close_world()


if __name__ == "__main__":
    main()
