"""Longplay's training loop for benchmarks: the stream, the exchange and the step, without logging."""

from __future__ import annotations

import gc
import time
import warnings
from pathlib import Path

from longplay.data_shards.storage.dataset import Dataset
from longplay.data_shards.stream.train_stream import TrainStream
from longplay.distributed.runtime.world import World, init_world
from longplay.launch.settings.config import RunConfig
from longplay.launch.settings.recipes import get_recipe
from longplay.launch.settings.resolving import resolve
from longplay.launch.training.model import build_model
from longplay.launch.training.step_pipeline import StepPipeline
from longplay.launch.training.train_step import train_step

warnings.filterwarnings("ignore", module="deepspeed|torch")


class LongplayLoop:
    """Train from step 1, a few steps per call. Collective.

    Args:
        recipe: name of the recipe.
        overrides: settings as on the command line, "--encoder.num_blocks", "2".
        plan_ahead: start the next step's exchange during the current step, as training does.
    """

    def __init__(
        self,
        data: Path,
        recipe: str,
        overrides: list[str],
        world: World | None = None,
        *,
        plan_ahead: bool = True,
    ) -> None:
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
        self._plan_ahead = plan_ahead
        self._steps: StepPipeline | None = None

    def steps(self, number: int) -> int:
        """Run `number` optimizer steps and return how many targets all ranks trained on."""
        targets = 0
        if self._steps is None:
            self._steps = StepPipeline(self.model, iter(self.stream))
        pipeline = self._steps if self._plan_ahead else None
        for _ in range(number):
            result = train_step(self.model, self._steps.take(), lr=1e-3, pipeline=pipeline)
            targets += result.num_targets
        return targets

    def close(self) -> None:
        """Free the model; the last call."""
        self.model.engine.close()
        del self.model, self._steps
        gc.collect()  # the table's parameter refers to itself

    def targets_per_s(self, number: int) -> float:
        """Return the targets per second of `number` steps."""
        began = time.perf_counter()
        targets = self.steps(number)
        return targets / (time.perf_counter() - began)
