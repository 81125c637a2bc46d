"""Describe a run before its first step."""

import dataclasses
from pathlib import Path

import torch

from longplay.data_shards.storage.dataset import Dataset
from longplay.data_shards.stream.epoch_order import EpochOrder
from longplay.launch.settings.config import RunConfig, TrainConfig
from longplay.launch.settings.overrides import spell_value
from longplay.launch.training.model import Model


def describe(config: RunConfig, dataset: Dataset, model: Model, order: EpochOrder, run: Path) -> list[str]:
    """Return the lines that state every derived number of a run and how to watch it."""
    world, encoder = model.world, config.encoder
    weights = sum(getattr(p, "ds_numel", p.numel()) for p in model.encoder.parameters())
    table = [f"{name} {size / 2**20:,.1f} MiB" for name, size in model.table.bytes_per_rank().items() if size]
    return [
        f"data     {dataset.path}: {dataset.num_users:,} users, {dataset.num_items:,} items, "
        f"{dataset.num_events:,} events",
        f"model    {encoder.model}: {encoder.num_blocks} block(s) of width {encoder.d_model}, context length "
        f"{config.context_length}, {weights:,} encoder weights, loss {model.loss.display_name}",
        *_inputs_line(model),
        f"table    {dataset.num_items:,} x {encoder.d_model}, {config.table.update}, per rank: "
        f"{', '.join(table)}",
        f"steps    {order.num_steps} per epoch, {config.data.rows_per_step} rows each; {order.num_targets:,} "
        f"targets per epoch ({100 * order.padding_fraction:.1f} % padding), "
        f"at most {_bounds(config.train)}",
        f"ranks    {world.world_size} on {world.device.type} ({world.launcher}), ZeRO stage "
        f"{config.engine.zero_stage}, {config.engine.precision}, {torch.get_num_threads()} thread(s) each",
        f"run      {run}; watch it with: tensorboard --logdir {run}",
    ]


def _bounds(train: TrainConfig) -> str:
    """Return the bounds of a run as text."""
    steps = "" if train.max_steps is None else f", {train.max_steps:,} steps"
    minutes = "" if train.max_minutes is None else f", {train.max_minutes:g} minutes of training"
    return f"{train.max_epochs} epochs{steps}{minutes}"


def _inputs_line(model: Model) -> list[str]:
    """Return one line with the encoder's inputs besides the items; empty without any."""
    if not model.inputs.spec:
        return []
    settings = dataclasses.asdict(model.config.inputs).items()
    shown = [
        f"{name} {spell_value(value)}" for name, value in settings if value not in (None, False, (), "none")
    ]
    return [f"inputs   {', '.join(shown)}"]
