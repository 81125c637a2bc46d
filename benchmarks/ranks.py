"""Throughput on 1, 2 and 4 ranks of one machine, in turns.

python -m benchmarks.ranks --data data/ml1m

Each rank has one thread and one core of its own, as far as there are cores; the global batch is the same.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
from pathlib import Path

import torch

from benchmarks.measure import interleaved, machine, median, spread
from benchmarks.own_loop import OwnLoop
from longplay.distributed.world import close_world, init_world

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
    parser.add_argument("--rank", action="store_true", help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.rank:
        _run_rank(args)
        return
    print(machine())
    pieces = {world_size: lambda w=world_size: _rate(args, w) for world_size in args.ranks}
    rates = interleaved({str(w): piece for w, piece in pieces.items()}, repeats=args.repeats)
    base = median(rates[str(args.ranks[0])])
    for world_size, values in rates.items():
        middle = median(values)
        print(f"{world_size} rank(s) {middle:10,.0f} targets/s  {middle / base:5.2f}  ({spread(values)})")


def _rate(args: argparse.Namespace, world_size: int) -> float:
    """Targets a second of one start."""
    command = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", str(world_size)]
    command += ["--master-port", "0", "-m", "benchmarks.ranks", "--rank", "--data", str(args.data)]
    command += [
        "--steps",
        str(args.steps),
        "--recipe",
        args.recipe,
        "--loss",
        args.loss,
        "--rows",
        str(args.rows),
    ]
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, capture_output=True, text=True, env=environment, timeout=900, check=False)
    if done.returncode:
        raise SystemExit(f"{world_size} ranks failed:\n{done.stderr}")
    return json.loads(done.stdout.splitlines()[-1])


def _run_rank(args: argparse.Namespace) -> None:
    """One rank of one start; rank 0 prints the rate."""
    torch.set_num_threads(1)
    cores = sorted(os.sched_getaffinity(0))
    os.sched_setaffinity(0, {cores[int(os.environ["LOCAL_RANK"]) % len(cores)]})
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
