"""Evaluate a checkpoint of a run folder on one split."""

import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from longplay.common.atomic import write_json
from longplay.common.json_files import sealed
from longplay.data_shards.errors import OnBadShard
from longplay.data_shards.storage.dataset import Dataset
from longplay.data_shards.storage.locations import Location
from longplay.data_shards.stream.splits import Part
from longplay.distributed.checkpoints.checkpoint import Checkpoint
from longplay.distributed.runtime.collectives import all_reduce_max
from longplay.distributed.runtime.memory import peak_memory_gib
from longplay.distributed.runtime.waiting import waiting
from longplay.distributed.runtime.watchdog import Watchdog
from longplay.distributed.runtime.world import barrier, close_world, init_world
from longplay.launch.console.progress import StageProgress
from longplay.launch.evaluation.evaluation import Evaluation, evaluate
from longplay.launch.evaluation.loading import find_checkpoint, load_model, open_dataset
from longplay.launch.evaluation.popularity import evaluate_popularity
from longplay.launch.settings.bad_shards import agree_on_bad_shards
from longplay.launch.settings.config import RunConfig
from longplay.launch.settings.saved import read_config


@dataclass(frozen=True, kw_only=True)
class RunEvaluation:
    """The evaluation of one checkpoint.

    Attributes:
        baseline: the evaluation of the popularity baseline; None unless requested.
        report: the result as JSON values.
    """

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
) -> RunEvaluation | None:
    """Evaluate a checkpoint of the run folder `run`; return None on ranks other than 0. Collective.

    Args:
        split: "validation" or "test".
        data: the prepared dataset, if it has moved since training.
        on_bad_shard: None uses the run's own setting.
        checkpoint: "best", "last" or a name such as "step-000000120".
        baseline: whether to evaluate the popularity baseline too.

    Raises:
        ValueError: the run, its dataset or the checkpoint cannot be used.
    """
    config = read_config(run)
    dataset = open_dataset(run, data, on_bad_shard or config.data.on_bad_shard)
    loaded = find_checkpoint(run, checkpoint)
    world = init_world(device=device, timeout_s=2 * config.train.timeout_s)
    with Watchdog(world, timeout_s=config.train.timeout_s) as watchdog:
        agree_on_bad_shards(dataset, config, world)
        encoder, table = load_model(config, dataset, loaded, world)
        with StageProgress("batches", enabled=world.is_rank0) as progress:
            result = evaluate(
                encoder, table, dataset, config, split, progress=progress, heartbeat=watchdog.heartbeat
            )
        with waiting("the memory of all ranks"):
            peak = torch.tensor([peak_memory_gib(world)], device=world.device)
            peak_gib = all_reduce_max(peak, world).item()
        popularity = evaluate_popularity(dataset, config, split, watchdog.heartbeat) if baseline else None
        report = _as_json(result, popularity, loaded, split)
        report |= {"peak_gib": round(peak_gib, 4), "ranks": world.world_size, "device": world.device.type}
        if dataset.store.on_bad_shard == "skip":
            report["skipped_shards"] = len(dataset.store.skipped)
            report["skipped_events"] = dataset.store.num_skipped_events
        watchdog.heartbeat("ending the evaluation")
        barrier(world)
    close_world(world)
    if not world.is_rank0:
        return None
    return RunEvaluation(
        config=config, dataset=dataset, checkpoint=loaded, result=result, baseline=popularity, report=report
    )


def write_evaluation(found: RunEvaluation, file: Path) -> None:
    """Write the report of an evaluation as JSON; create the folder of the file.

    Raises:
        OSError: the file cannot be written.
    """
    file.parent.mkdir(parents=True, exist_ok=True)
    write_json(file, sealed(found.report))


def _as_json(
    result: Evaluation, baseline: Evaluation | None, checkpoint: Checkpoint, split: str
) -> dict[str, Any]:
    """Return the result as nested JSON values."""
    report: dict[str, Any] = {**_finite(result.metrics), "num_users": result.num_users, "split": split}
    report |= {
        "users_few_unseen": result.num_users_few_unseen,
        "users_none_unseen": result.num_users_none_unseen,
        "checkpoint": checkpoint.path.name,
        "step": checkpoint.step,
        "seconds": round(result.seconds, 3),
    }
    if baseline is not None:
        report["popularity"] = _finite(baseline.metrics)
    return report


def _finite(metrics: dict[str, dict[str, float]]) -> dict[str, dict[str, float | None]]:
    """Replace NaN, the standard error of a single user, with None: JSON has no NaN."""
    return {
        kind: {name: value if math.isfinite(value) else None for name, value in values.items()}
        for kind, values in metrics.items()
    }
