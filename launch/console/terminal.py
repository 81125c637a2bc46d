"""What a person sees of a run: the plan before it starts, a progress bar, one line per validation."""

import sys
from pathlib import Path

import torch
from tqdm import tqdm

from longplay.data_shards.storage.dataset import Dataset
from longplay.data_shards.stream.epoch_order import EpochPlan
from longplay.distributed.runtime.world import World
from longplay.launch.settings.config import RunConfig
from longplay.launch.training.model import Model


class Terminal:
    """Rank 0's terminal; the other ranks' Terminal prints nothing."""

    def __init__(self, world: World) -> None:
        self.speaks = world.is_rank0
        self.bar: tqdm | None = None

    def say(self, line: str) -> None:
        """Print one line, above the progress bar where there is one."""
        if self.speaks:
            tqdm.write(line, file=sys.stdout)
            sys.stdout.flush()

    def start_bar(self, *, done: int, total: int) -> None:
        """Show a progress bar, unless the output goes to a file."""
        if self.speaks and sys.stdout.isatty():
            self.bar = tqdm(total=total, initial=done, unit="step", dynamic_ncols=True)

    def step_done(self, loss: float) -> None:
        if self.bar is not None:
            self.bar.set_postfix(loss=f"{loss:.4f}", refresh=False)
            self.bar.update(1)

    def stop_bar(self) -> None:
        if self.bar is not None:
            self.bar.close()


def describe(config: RunConfig, dataset: Dataset, model: Model, plan: EpochPlan, run: Path) -> list[str]:
    """Every derived number of a run, before it starts, and where to watch it."""
    world, encoder = model.world, config.encoder
    weights = sum(getattr(p, "ds_numel", p.numel()) for p in model.encoder.parameters())
    table = [f"{name} {size / 2**20:,.1f} MiB" for name, size in model.table.bytes_per_rank().items() if size]
    return [
        f"data     {dataset.path}: {dataset.num_users:,} users, {dataset.num_items:,} items, "
        f"{dataset.num_events:,} events",
        f"model    {encoder.model}: {encoder.num_blocks} block(s) of width {encoder.d_model}, context length "
        f"{config.context_length}, {weights:,} encoder weights, loss {config.loss.name}",
        f"table    {dataset.num_items:,} x {encoder.d_model}, {config.table.update}, per rank: "
        f"{', '.join(table)}",
        f"steps    {plan.num_steps} an epoch of {config.data.rows_per_step} rows, {plan.num_targets:,} "
        f"targets ({100 * plan.padding_fraction:.1f} % padding), at most {config.train.max_epochs} epochs",
        f"ranks    {world.world_size} on {world.device.type} ({world.launcher}), ZeRO stage "
        f"{config.engine.zero_stage}, {config.engine.precision}, {torch.get_num_threads()} thread(s) each",
        f"run      {run}; watch it with: tensorboard --logdir {run}",
    ]
