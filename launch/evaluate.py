"""`longplay evaluate RUN --split test [--json]`: exact full-catalogue and sampled metrics of a run."""

import argparse
import json
import sys
from pathlib import Path
from typing import Any

from longplay.launch.evaluation.evaluate_run import evaluate_run
from longplay.launch.evaluation.evaluation import Evaluation
from longplay.launch.settings.data_arguments import data_location
from longplay.launch.settings.imports import add_import_argument


def register(subparsers: Any) -> None:
    """Add `evaluate` to the `longplay` command."""
    parser = subparsers.add_parser("evaluate", help="exact ranking metrics of a run", description=__doc__)
    parser.add_argument("run", type=Path, help="folder of `longplay train --run`")
    add_import_argument(parser)
    parser.add_argument("--split", choices=("validation", "test"), default="test")
    parser.add_argument(
        "--data", type=data_location, help="prepared dataset, where it has moved since training"
    )
    parser.add_argument(
        "--on-bad-shard",
        choices=("stop", "skip"),
        help="what to do about a damaged shard; default: as the run",
    )
    parser.add_argument(
        "--checkpoint", default="best", help="best (default), last, or a name such as step-000000120"
    )
    parser.add_argument("--baseline", action="store_true", help="also rank by popularity, for comparison")
    parser.add_argument("--device", choices=("auto", "cpu", "cuda"), default="auto")
    parser.add_argument("--json", action="store_true", help="print one JSON object and nothing else")
    parser.add_argument("--out", type=Path, metavar="FILE", help="write that JSON object to a file as well")
    parser.set_defaults(func=run)


def run(args: argparse.Namespace) -> int:
    """The command; returns its exit code."""
    found = evaluate_run(
        args.run,
        split=args.split,
        data=args.data,
        on_bad_shard=args.on_bad_shard,
        checkpoint=args.checkpoint,
        device=args.device,
        baseline=args.baseline,
        out=args.out,
    )
    if found is not None and args.json:
        print(json.dumps(found.report))
    elif found is not None:
        checkpoint, result, dataset = found.checkpoint, found.result, found.dataset
        print(
            f"{args.run}, {args.split} split, {checkpoint.path.name} (step {checkpoint.step}), "
            f"{result.num_users:,} users, {dataset.num_items:,} items, {result.seconds:.1f} s"
        )
        print(as_table(found.config.encoder.model, result, found.baseline))
        if dataset.skipped_summary() is not None:
            print(f"skipped  {dataset.skipped_summary()}")
    return 0


def as_table(model: str, result: Evaluation, baseline: Evaluation | None) -> str:
    """The result as a small table: a column per model, a row per metric, standard errors behind ±."""
    columns = {model: result.metrics} | ({} if baseline is None else {"popularity": baseline.metrics})
    lines = ["".ljust(20) + "".join(f"{name:>20}" for name in columns)]
    for kind, metrics in result.metrics.items():
        lines.append("-" * len(lines[0]))
        for metric in (name for name in metrics if not name.endswith("_se")):
            cells = [
                f"{values[kind][metric]:.4f} ± {values[kind][metric + '_se']:.4f}"
                for values in columns.values()
            ]
            lines.append(f"{kind} {metric}".ljust(20) + "".join(f"{cell:>20}" for cell in cells))
    return "\n".join(lines)


if __name__ == "__main__":
    from longplay.launch.cli import main

    sys.exit(main(["evaluate", *sys.argv[1:]]))
