"""Evaluate every user: Longplay's exact ranking of the whole catalog against a loop over users.

    python -m benchmarks.evaluation --data data/ml1m

The loop of `research_loop.py` ranks the target among 100 items drawn in Python, one user at a time. Longplay
ranks the same targets among all items, all unseen items and 100 sampled items in one pass. Both use an
untrained MambaRec of the same size and scan, and encode the same number of latest events.
"""

from __future__ import annotations

import argparse
import random
from pathlib import Path

import torch

from benchmarks.longplay_loop import LongplayLoop
from benchmarks.measure import interleaved, machine, median, seconds, spread
from benchmarks.research_loop import NUM_SAMPLED, PaddedMambaRec, evaluate_by_user
from longplay.data_shards.storage.dataset import Dataset
from longplay.launch.evaluation.evaluation import evaluate

_LENGTH, _WIDTH, _STATE = 200, 64, 32


def main() -> None:
    """Alternate the two evaluations; print their seconds and the ratio."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--data", type=Path, required=True, help="a prepared dataset")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    random.seed(0)
    dataset = Dataset.open(args.data)
    padded = PaddedMambaRec(dataset.num_items, _WIDTH, 1, _STATE, "auto")
    sequences = [dataset.sequence(user)[0].tolist() for user in range(dataset.num_users)]
    histories, targets = [items[:-1] for items in sequences], [items[-1] for items in sequences]
    own = LongplayLoop(args.data, "mambarec", ["--context_length", str(_LENGTH), "--encoder.num_blocks", "1"])

    def ours() -> None:
        own.model.engine.train(False)
        result = evaluate(own.model.engine, own.model.table, own.dataset, own.config, "test")
        assert result.num_users == dataset.num_users

    pieces = {
        "loop over users": lambda: seconds(
            lambda: evaluate_by_user(padded, histories, targets, dataset.num_items, _LENGTH)
        ),
        "longplay": lambda: seconds(ours),
    }
    print(machine())
    times = interleaved(pieces, repeats=args.repeats)
    loop, exact = times["loop over users"], times["longplay"]
    print(f"{dataset.num_users:,} users, {dataset.num_items:,} items, the latest {_LENGTH} events")
    print(f"loop over users, {NUM_SAMPLED} sampled items    {median(loop):8.2f} s  ({spread(loop)})")
    print(f"longplay, all items and {NUM_SAMPLED} sampled   {median(exact):8.2f} s  ({spread(exact)})")
    print(f"ratio {median(exact) / median(loop):.3f}")


if __name__ == "__main__":
    main()
