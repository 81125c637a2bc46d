"""`longplay evaluate RUN`: print a checkpoint's exact ranking metrics among all items and sampled items."""

import argparse
import json
import os
import sys
from pathlib import Path
from typing import Any

from rich.table import Table

from longplay.common.atomic import can_create
from longplay.common.json_files import JsonFileError, read_json
from longplay.common.locks import is_locked
from longplay.launch.console.tables import new_table, print_table
from longplay.launch.evaluation.evaluate_run import RunEvaluation, evaluate_run, write_evaluation
from longplay.launch.evaluation.few_unseen import few_unseen_warning
from longplay.launch.evaluation.saved_evaluation import evaluation_file
from longplay.launch.run_folders.tensorboard_log import write_final_metrics
from longplay.launch.settings.common_arguments import add_device_argument, add_run_arguments
from longplay.launch.settings.config import TrainConfig
from longplay.launch.settings.errors import ConfigError
from longplay.launch.training.progress import Progress, RunState


def register(subparsers: Any) -> None:
    """Add `evaluate` to the `longplay` command."""
    parser = subparsers.add_parser(
        "evaluate",
        description="Print the exact ranking metrics of a checkpoint, among all items and sampled ones.",
    )
    add_run_arguments(parser)
    parser.add_argument(
        "--split", choices=("validation", "test"), default="test", help="events to predict (default: test)"
    )
    parser.add_argument(
        "--on-bad-shard",
        choices=("stop", "skip"),
        help="what to do about a damaged shard (default: the run's setting)",
    )
    parser.add_argument("--baseline", action="store_true", help="also rank by popularity, for comparison")
    add_device_argument(parser)
    parser.add_argument("--json", action="store_true", help="print one JSON object and nothing else")
    parser.add_argument("--out", type=Path, metavar="FILE", help="also write the JSON object to a file")
    parser.set_defaults(func=run)


def run(args: argparse.Namespace) -> int:
    """Run the command and return its exit code."""
    if args.out is not None and not can_create(args.out):
        raise ConfigError(f"--out {args.out}: cannot be written; give another file")
    found = evaluate_run(
        args.run,
        split=args.split,
        data=args.data,
        on_bad_shard=args.on_bad_shard,
        checkpoint=args.checkpoint,
        device=args.device,
        baseline=args.baseline,
    )
    if found is None:
        return 0
    warning = few_unseen_warning(found.result, found.config.evaluation)
    if warning is not None:
        print(f"longplay: {warning}", file=sys.stderr)
    if args.json:
        print(json.dumps(found.report))
    else:
        checkpoint, dataset = found.checkpoint, found.dataset
        print(
            f"{args.run}, {args.split} split, {checkpoint.path.name} (step {checkpoint.step}), "
            f"{found.result.num_users:,} users, {dataset.num_items:,} items, {found.result.seconds:.1f} s"
        )
        print_table(metrics_table(found))
        if dataset.skipped_summary() is not None:
            print(f"skipped  {dataset.skipped_summary()}")
    status = _save(found, args)  # after printing: the disk may be full
    if not args.json:
        print(status)
    return 0


def _save(found: RunEvaluation, args: argparse.Namespace) -> str:
    """Write the evaluation to `--out` and, if it is the run's result, to the run folder; return a line."""
    if args.out is not None:
        write_evaluation(found, args.out)
    if args.checkpoint == "best":
        write_final_metrics(args.run, args.split, found.checkpoint.step, found.result.metrics)
    file = evaluation_file(args.run, args.split)
    reason = _why_not_saved(args.run, args.checkpoint, found)
    if reason is not None:
        return f"{file} is not written: {reason}"
    write_evaluation(found, file)
    return f"saved    {file}"


def _why_not_saved(run: Path, checkpoint: str, found: RunEvaluation) -> str | None:
    """Return why the evaluation does not become the result of its run; None if it does."""
    if checkpoint != "best":
        return "it holds the metrics of the best checkpoint"
    if is_locked(run) or not _training_has_ended(run, found.config.train):
        return "training has not ended"
    if not os.access(run, os.W_OK):
        return "the run folder is read-only"
    return None


def _training_has_ended(run: Path, train: TrainConfig) -> bool:
    """Return whether the newest progress in the checkpoints' state.json reaches a bound of the run."""
    found = []
    for file in run.glob("checkpoints/step-*/state.json"):
        try:
            found.append(read_json(file, RunState)["progress"])
        except (FileNotFoundError, JsonFileError):
            continue
    newest = max(found, key=lambda at: at.step, default=Progress())
    return newest.why_complete(train) is not None


def metrics_table(found: RunEvaluation) -> Table:
    """Return a table with a column per model and a row per metric: its value and standard error."""
    columns = {found.config.encoder.model: found.result.metrics}
    if found.baseline is not None:
        columns["popularity"] = found.baseline.metrics
    table = new_table("", *columns, widths=(20, *(19 for _ in columns)))
    for kind, metrics in found.result.metrics.items():
        for metric in (name for name in metrics if not name.endswith("_se")):
            cells = [
                f"{values[kind][metric]:.4f} ± {values[kind][metric + '_se']:.4f}"
                for values in columns.values()
            ]
            table.add_row(f"{kind} {metric}", *cells)
        table.add_section()
    return table


if __name__ == "__main__":
    from longplay.launch.cli import main

    sys.exit(main(["evaluate", *sys.argv[1:]]))
