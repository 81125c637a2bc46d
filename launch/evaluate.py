"""`longplay evaluate RUN --split test [--json]`: exact full-catalogue and sampled metrics of a run."""

import argparse
import json
import math
import sys
from pathlib import Path
from typing import Any

import torch

from longplay.data_shards.storage.dataset import Dataset
from longplay.data_shards.storage.locations import Location, parse_location
from longplay.data_shards.storage.shard_store import OnBadShard
from longplay.distributed.checkpoints.checkpoint import (
    Checkpoint,
    latest_checkpoint,
    load_checkpoint,
    load_encoder_weights,
    open_checkpoint,
    write_json,
)
from longplay.distributed.runtime.collectives import all_reduce_max
from longplay.distributed.runtime.memory import peak_memory_gib
from longplay.distributed.runtime.watchdog import Watchdog
from longplay.distributed.runtime.world import World, close_world, init_world
from longplay.distributed.table.item_table import ItemTable
from longplay.launch.evaluation.evaluation import Evaluation, evaluate
from longplay.launch.evaluation.popularity import evaluate_popularity
from longplay.launch.run_folders.run_folder import RunFolder
from longplay.launch.run_folders.tensorboard_log import write_final_metrics
from longplay.launch.settings.config import ConfigError, RunConfig, read_config
from longplay.launch.settings.data_arguments import agree_on_bad_shards, data_location
from longplay.models.build import build_encoder
from longplay.models.encoder import SequenceEncoder


def register(subparsers: Any) -> None:
    """Add `evaluate` to the `longplay` command."""
    parser = subparsers.add_parser("evaluate", help="exact ranking metrics of a run", description=__doc__)
    parser.add_argument("run", type=Path, help="folder of `longplay train --run`")
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
    config = read_config(args.run)
    dataset = open_dataset(args.run, args.data, args.on_bad_shard or config.data.on_bad_shard)
    checkpoint = find_checkpoint(args.run, args.checkpoint)
    world = init_world(device=args.device, timeout_s=2 * config.train.timeout_s)  # as in training
    with Watchdog(world, timeout_s=config.train.timeout_s) as watchdog:
        agree_on_bad_shards(dataset, config, world)
        encoder, table = load_model(config, dataset, checkpoint, world)
        result = evaluate(encoder, table, dataset, config, args.split, heartbeat=watchdog.heartbeat)
    peak_gib = all_reduce_max(torch.tensor([peak_memory_gib(world)], device=world.device), world).item()
    baseline = evaluate_popularity(dataset, config, args.split) if args.baseline else None
    if world.is_rank0:
        report = as_json(result, baseline, checkpoint, args.split)
        report |= {"peak_gib": round(peak_gib, 4), "ranks": world.world_size, "device": world.device.type}
        if dataset.store.on_bad_shard == "skip":
            report["skipped_shards"] = len(dataset.store.skipped)
            report["skipped_events"] = dataset.store.num_skipped_events
        if args.out is not None:
            args.out.parent.mkdir(parents=True, exist_ok=True)
            write_json(args.out, report)
        if args.checkpoint == "best":
            write_final_metrics(args.run, args.split, checkpoint.step, result.metrics)
        if args.json:
            print(json.dumps(report))
        else:
            print(
                f"{args.run}, {args.split} split, {checkpoint.path.name} (step {checkpoint.step}), "
                f"{result.num_users:,} users, {dataset.num_items:,} items, {result.seconds:.1f} s"
            )
            print(as_table(config.encoder.model, result, baseline))
            if dataset.skipped_summary() is not None:
                print(f"skipped  {dataset.skipped_summary()}")
    close_world()
    return 0


def open_dataset(run: Path, data: Location | None, on_bad_shard: OnBadShard = "stop") -> Dataset:
    """The dataset a run was trained on, at `data` or where the run remembers it.

    Raises:
        ConfigError: it is another dataset.
    """
    saved = json.loads((run / "config.json").read_text())
    location = data or parse_location(saved["data"])
    if data is None and isinstance(location, Path) and not location.is_dir():
        raise ConfigError(f"{saved['data']}: the dataset of {run} is not there; name where it is with --data")
    dataset = Dataset.open(location, on_bad_shard=on_bad_shard)
    if dataset.dataset_id != saved["dataset_id"]:
        raise ConfigError(
            f"--data {dataset.path}: is not the dataset that {run} was trained on; give that one, it was at "
            f"{saved['data']}"
        )
    return dataset


def find_checkpoint(run: Path, name: str) -> Checkpoint:
    """The run's checkpoint "best", "last" or step-NNN.

    Raises:
        ConfigError: there is none.
        CheckpointError: it is damaged; of "last", all are.
    """
    folder = RunFolder(run)
    if name == "best":
        best = folder.read_best()
        name = best["checkpoint"] if best else "last"
    if name != "last":
        if not (folder.checkpoints / name / "state.json").is_file():
            there = ", ".join(sorted(path.name for path in folder.checkpoints.glob("step-*"))) or "none"
            raise ConfigError(
                f"--checkpoint {name}: is not in {folder.checkpoints}; there are best, last, {there}"
            )
        return open_checkpoint(folder.checkpoints / name)
    checkpoint, _ = latest_checkpoint(folder.checkpoints)
    if checkpoint is None:
        raise ConfigError(f"{run}: has no checkpoint yet; train first")
    return checkpoint


def load_model(
    config: RunConfig, dataset: Dataset, checkpoint: Checkpoint, world: World
) -> tuple[SequenceEncoder, ItemTable]:
    """The checkpoint's encoder in eval mode, and its item table, read-only. Every rank must call."""
    encoder = build_encoder(config.encoder, torch.Generator().manual_seed(config.seed))
    load_encoder_weights(checkpoint, encoder)
    table = ItemTable(
        config.table,
        num_items=dataset.num_items,
        width=config.encoder.d_model,
        world=world,
        initial_rows=False,
        read_only=True,
    )
    load_checkpoint(checkpoint, None, table)
    return encoder.to(world.device).eval(), table


def as_json(
    result: Evaluation, baseline: Evaluation | None, checkpoint: Checkpoint, split: str
) -> dict[str, Any]:
    """The result as nested JSON values."""
    report: dict[str, Any] = {**finite(result.metrics), "num_users": result.num_users, "split": split}
    report |= {
        "checkpoint": checkpoint.path.name,
        "step": checkpoint.step,
        "seconds": round(result.seconds, 3),
    }
    if baseline is not None:
        report["popularity"] = finite(baseline.metrics)
    return report


def finite(metrics: dict[str, dict[str, float]]) -> dict[str, dict[str, float | None]]:
    """The metrics with None for what JSON cannot say: the standard error of a single user."""
    return {
        kind: {name: value if math.isfinite(value) else None for name, value in values.items()}
        for kind, values in metrics.items()
    }


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
