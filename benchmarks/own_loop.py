"""Longplay's training as a piece that benchmarks can time: the stream, the exchange, the step, no logging."""

from __future__ import annotations

import time
import warnings
from pathlib import Path

from longplay.data_shards.dataset import Dataset
from longplay.data_shards.train_stream import TrainStream
from longplay.distributed.world import World, init_world
from longplay.launch.config import RunConfig, resolve
from longplay.launch.model import build_model
from longplay.launch.recipes import get_recipe
from longplay.launch.train_step import train_step

warnings.filterwarnings("ignore", module="deepspeed|torch")


class OwnLoop:
    """A run from its first step on, one or several steps at a time. Building and running it is collective.

    Args:
        recipe: whose settings are taken.
        overrides: as on the command line, "--encoder.num_blocks", "2".
    """

    def __init__(self, data: Path, recipe: str, overrides: list[str], world: World | None = None) -> None:
        self.world = world or init_world(device="auto")
        self.config: RunConfig = resolve(recipe, get_recipe(recipe), overrides)
        self.dataset = Dataset.open(data)
        self.stream = TrainStream(
            self.dataset,
            self.config.data,
            rank=self.world.rank,
            world_size=self.world.world_size,
            pin_memory=self.world.device.type == "cuda",
        )
        self.model = build_model(self.config, self.dataset, self.world)
        self._batches = iter(self.stream)
        self._step = 0

    def steps(self, number: int) -> int:
        """That many optimizer steps; the targets of all ranks that they trained on."""
        targets = 0
        for _ in range(number):
            self._step += 1
            result = train_step(self.model, next(self._batches), step=self._step, lr=1e-3)
            targets += result.num_targets
        return targets

    def targets_per_s(self, number: int) -> float:
        """Targets a second over that many steps."""
        began = time.perf_counter()
        targets = self.steps(number)
        return targets / (time.perf_counter() - began)
