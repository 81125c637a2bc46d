"""Measure trained targets per second, against the loop of `research_loop.py`.

    python -m benchmarks.train baseline --data data/ml1m   MambaRec, SASRec and the padded loop at L = 200
    python -m benchmarks.train models --data data/ml1m     the five models at several context lengths

`baseline` gives both loops the same model sizes, loss (binary cross-entropy with one negative), rows per step
and threads. They differ in packed or padded rows, in negatives drawn in one call or in Python, and in updates
of the touched rows or of the whole table. Targets are real events; padding is not counted.
"""

from __future__ import annotations

import argparse
import random
import time
from collections.abc import Callable
from pathlib import Path

import torch

from benchmarks.longplay_loop import LongplayLoop
from benchmarks.measure import interleaved, machine, median, spread
from benchmarks.research_loop import PaddedMambaRec, PaddedSASRec, PaddedUsers, ResearchLoop
from longplay.data_shards.storage.dataset import Dataset
from longplay.distributed.runtime.world import init_world

_LENGTH, _WIDTH, _STATE, _ROWS = 200, 64, 32, 128
MODELS = ("gru4rec", "sasrec", "recmamba", "mambarec", "moematrrec")


def main() -> None:
    """Run one part and print its table."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("part", choices=["baseline", "models"])
    parser.add_argument("--data", type=Path, required=True, help="a prepared dataset")
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--steps", type=int, default=4, help="steps of each loop per turn")
    parser.add_argument("--blocks", type=int, default=1)
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--sampler-workers", type=int, default=0, help="worker processes of the padded loop")
    parser.add_argument("--lengths", type=int, nargs="+", default=[250, 1000, 5000], help="for `models`")
    parser.add_argument("--slots", type=int, default=20_000, help="approximate slots per step, for `models`")
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    print(machine())
    (_baseline if args.part == "baseline" else _models)(args)


def _baseline(args: argparse.Namespace) -> None:
    """Compare both loops for two models and two scans."""
    random.seed(0)
    torch.manual_seed(0)
    dataset = Dataset.open(args.data)
    users = PaddedUsers(training_histories(dataset), dataset.num_items, _LENGTH)
    sizes = (dataset.num_items, _WIDTH, args.blocks)
    padded = {
        "MambaRec, chunk": PaddedMambaRec(*sizes, _STATE, "chunk"),
        "MambaRec, C++": PaddedMambaRec(*sizes, _STATE, "cpp"),
        "SASRec": PaddedSASRec(*sizes, _LENGTH),
    }
    words = {
        "MambaRec, chunk": ["mambarec", "--encoder.scan_backend", "chunk"],
        "MambaRec, C++": ["mambarec", "--encoder.scan_backend", "cpp"],
        "SASRec": ["sasrec"],
    }
    common = ["--context_length", str(_LENGTH), "--encoder.num_blocks", str(args.blocks)]
    common += ["--loss.name", "bce", "--data.rows_per_step", str(_ROWS), "--data.num_lanes", "8"]
    world = init_world(device="cpu")
    pieces: dict[str, Callable[[], float]] = {}
    for name, model in padded.items():
        loop = ResearchLoop(model, users, _ROWS, args.sampler_workers)
        pieces[f"{name}, padded"] = lambda loop=loop: _rate(loop.step, args.steps)
        recipe, *extra = words[name]
        own = LongplayLoop(args.data, recipe, [*common, *extra], world)
        pieces[name] = lambda own=own: own.targets_per_s(args.steps)
    rates = interleaved(pieces, repeats=args.repeats)
    print(f"{'targets/s':<16} {'padded loop':>12} {'longplay':>12} {'ratio':>7}")
    for name in padded:
        theirs, ours = rates[f"{name}, padded"], rates[name]
        ratio = median(ours) / median(theirs)
        print(f"{name:<16} {median(theirs):12,.0f} {median(ours):12,.0f} {ratio:7.2f}  ({spread(ours)})")
    chunk = median(rates["MambaRec, chunk, padded"])
    ratio = median(rates["MambaRec, C++"]) / chunk
    print(f"MambaRec with the C++ scan against the padded loop with the chunked scan: {ratio:.2f}")


def _rate(step: Callable[[], int], steps: int) -> float:
    """Return the targets/s of `steps` calls of `step`, which returns its number of targets."""
    began = time.perf_counter()
    targets = sum(step() for _ in range(steps))
    return targets / (time.perf_counter() - began)


def training_histories(dataset: Dataset) -> list[list[int]]:
    """Return each user's items in order, without the validation and the test item."""
    histories = [dataset.sequence(user)[0] for user in range(dataset.num_users)]
    return [items[:-2].tolist() for items in histories if len(items) > 3]


def _models(args: argparse.Namespace) -> None:
    """Print targets/s of each model at each context length, with about `--slots` slots per step."""
    world = init_world(device="auto")
    print(f"{'targets/s':<12}" + "".join(f"{f'L={length}':>12}" for length in args.lengths))
    table: dict[str, list[str]] = {}
    for length in args.lengths:
        rows = max(1, round(args.slots / length))
        words = ["--context_length", str(length), "--encoder.num_blocks", str(args.blocks)]
        words += ["--data.rows_per_step", str(rows), "--data.num_lanes", "1", "--loss.name", "bce"]
        loops = {name: LongplayLoop(args.data, name, words, world) for name in MODELS}
        pieces = {name: lambda own=own: own.targets_per_s(args.steps) for name, own in loops.items()}
        for name, rates in interleaved(pieces, repeats=args.repeats).items():
            table.setdefault(name, []).append(f"{median(rates):12,.0f}")
        for own in loops.values():
            own.close()
    for name, cells in table.items():
        print(f"{name:<12}" + "".join(cells))


if __name__ == "__main__":
    main()
