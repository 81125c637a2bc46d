"""Evaluate a checkpoint of a run folder on one split."""

import json
import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from longplay.common.atomic import write_json
from longplay.data_shards.storage.dataset import Dataset
from longplay.data_shards.storage.locations import Location, parse_location
from longplay.data_shards.storage.shard_store import OnBadShard
from longplay.data_shards.stream.splits import Part
from longplay.distributed.checkpoints.checkpoint import (
    Checkpoint,
    latest_checkpoint,
    load_checkpoint,
    load_encoder_weights,
    open_checkpoint,
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
from longplay.launch.settings.config import RunConfig
from longplay.launch.settings.data_arguments import agree_on_bad_shards
from longplay.launch.settings.errors import ConfigError
from longplay.launch.settings.saved import read_config
from longplay.models.encoder import SequenceEncoder, build_encoder


@dataclass(frozen=True, kw_only=True)
class RunEvaluation:
    """The evaluation of one checkpoint; `report` is the same as JSON values."""

    config: RunConfig
    dataset: Dataset
    checkpoint: Checkpoint
    result: Evaluation
    baseline: Evaluation | None
    report: dict[str, Any]


def evaluate_run(
    run: Path,
    *,
    split: Part,
    data: Location | None = None,
    on_bad_shard: OnBadShard | None = None,
    checkpoint: str = "best",
    device: str = "auto",
    baseline: bool = False,
    out: Path | None = None,
) -> RunEvaluation | None:
    """Evaluate a checkpoint of the run folder `run`; return None on ranks other than 0. Collective.

    Args:
        split: "validation" or "test".
        data: the prepared dataset, if it has moved since training.
        on_bad_shard: None uses the run's own setting.
        checkpoint: "best", "last" or a name such as "step-000000120".
        baseline: whether to rank by popularity too.
        out: file that receives the report as JSON.

    Raises:
        ValueError: the run, its dataset or the checkpoint cannot be used.
    """
    config = read_config(run)
    dataset = open_dataset(run, data, on_bad_shard or config.data.on_bad_shard)
    loaded = find_checkpoint(run, checkpoint)
    world = init_world(device=device, timeout_s=2 * config.train.timeout_s)  # as in training
    with Watchdog(world, timeout_s=config.train.timeout_s) as watchdog:
        agree_on_bad_shards(dataset, config, world)
        encoder, table = load_model(config, dataset, loaded, world)
        result = evaluate(encoder, table, dataset, config, split, heartbeat=watchdog.heartbeat)
    peak_gib = all_reduce_max(torch.tensor([peak_memory_gib(world)], device=world.device), world).item()
    popularity = evaluate_popularity(dataset, config, split) if baseline else None
    report = _as_json(result, popularity, loaded, split)
    report |= {"peak_gib": round(peak_gib, 4), "ranks": world.world_size, "device": world.device.type}
    if dataset.store.on_bad_shard == "skip":
        report["skipped_shards"] = len(dataset.store.skipped)
        report["skipped_events"] = dataset.store.num_skipped_events
    if world.is_rank0:
        if out is not None:
            out.parent.mkdir(parents=True, exist_ok=True)
            write_json(out, report)
        if checkpoint == "best":
            write_final_metrics(run, split, loaded.step, result.metrics)
    close_world()
    if not world.is_rank0:
        return None
    return RunEvaluation(
        config=config, dataset=dataset, checkpoint=loaded, result=result, baseline=popularity, report=report
    )


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


def _as_json(
    result: Evaluation, baseline: Evaluation | None, checkpoint: Checkpoint, split: str
) -> dict[str, Any]:
    """The result as nested JSON values."""
    report: dict[str, Any] = {**_finite(result.metrics), "num_users": result.num_users, "split": split}
    report |= {
        "checkpoint": checkpoint.path.name,
        "step": checkpoint.step,
        "seconds": round(result.seconds, 3),
    }
    if baseline is not None:
        report["popularity"] = _finite(baseline.metrics)
    return report


def _finite(metrics: dict[str, dict[str, float]]) -> dict[str, dict[str, float | None]]:
    """The metrics with None for what JSON cannot say: the standard error of a single user."""
    return {
        kind: {name: value if math.isfinite(value) else None for name, value in values.items()}
        for kind, values in metrics.items()
    }
