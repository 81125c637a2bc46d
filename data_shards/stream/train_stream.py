"""The packed rows a rank trains on, from any step on, the same at every number of ranks."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from longplay.data_shards.errors import DataError
from longplay.data_shards.storage.dataset import Dataset
from longplay.data_shards.stream.data_workers import WorkerBatches
from longplay.data_shards.stream.epoch_order import EpochPlan, StreamConfig, usable_lanes
from longplay.data_shards.stream.prefetch import prefetch
from longplay.data_shards.stream.rows import Batch, RowBuilder
from longplay.data_shards.stream.splits import split_bounds

__all__ = ["Batch", "TrainStream", "check_stream"]


def check_stream(dataset: Dataset, config: StreamConfig, world_size: int) -> None:
    """Finds before a run starts what it would stumble over later.

    Raises:
        DataError: more ranks than lanes, nothing to train on, or nobody to validate on.
    """
    TrainStream(dataset, config, world_size=world_size)
    if not np.any(split_bounds(dataset, config.split).targets["validation"] >= 0):
        raise DataError(
            f"{dataset.path}: the split leaves no user to validate on; change data.split, or prepare a "
            "dataset with longer histories"
        )


class TrainStream:
    """Endless batches of one rank, over epochs; its state is the epoch and the step within it.

    Args:
        rank, world_size: lanes are dealt to ranks in blocks, as evenly as they divide.
        pin_memory: make batches in page-locked memory, for a GPU.

    Raises:
        DataError: more ranks than lanes, or nothing to train on.
    """

    def __init__(
        self,
        dataset: Dataset,
        config: StreamConfig,
        *,
        rank: int = 0,
        world_size: int = 1,
        pin_memory: bool = False,
    ) -> None:
        assert 0 <= rank < world_size, f"rank {rank} of {world_size}"
        self.dataset, self.config, self._pin_memory = dataset, config, pin_memory
        self.num_lanes = usable_lanes(config, dataset.num_shards)
        if world_size > self.num_lanes:
            raise DataError(
                f"{world_size} ranks for {self.num_lanes} lanes: every rank needs a lane; raise "
                f"data.num_lanes (at most {dataset.num_shards}, the shards) or start {self.num_lanes} ranks"
            )
        self.lanes = [lane for lane in range(self.num_lanes) if lane * world_size // self.num_lanes == rank]
        num_train = split_bounds(dataset, config.split).num_train
        if not np.any(num_train > 1):
            raise DataError(
                f"{dataset.path}: the split leaves no user two events to train on; change data.split"
            )
        self._builder = RowBuilder(
            dataset.store, config, num_train, num_lanes=self.num_lanes, lanes=self.lanes
        )
        self._position = (0, 0)

    def plan(self, epoch: int) -> EpochPlan:
        """The order of one epoch, with its `num_steps`, `num_targets`, `num_rows` and `padding_fraction`."""
        return self._builder.plan(epoch)

    def steps_per_epoch(self, epoch: int) -> int:
        """Steps of one epoch, the same on every rank; varies by a few with the epoch's cuts."""
        return self.plan(epoch).num_steps

    def state_dict(self) -> dict[str, int]:
        """The position of the next batch."""
        epoch, step = self._position
        return {"epoch": epoch, "step": step}

    def load_state_dict(self, state: dict[str, int]) -> None:
        """Goes to a position; takes effect at the next `iter()`.

        Raises:
            DataError: no such step in that epoch, so the state is of another dataset or configuration.
        """
        epoch, step = int(state["epoch"]), int(state["step"])
        if epoch < 0 or not 0 <= step < self.steps_per_epoch(epoch):
            raise DataError(
                f"stream position epoch {epoch}, step {step} does not exist for {self.dataset.path} with "
                "these data settings; resume with the dataset and settings of the run"
            )
        self._position = (epoch, step)

    def __iter__(self) -> Iterator[Batch]:
        """Batches from the current position on, without end.

        Closing the iterator, or dropping it, ends its thread and its workers.

        Raises:
            DataError: a missing or damaged shard, by name, or a data worker that was killed.
        """
        depth = self.config.prefetch_steps
        if self.config.workers:
            depth = max(1, depth)  # a thread, so that a killed worker is an exception here and no signal
        for batch in prefetch(self._produce(*self._position), depth):
            ended = batch.step + 1 == self.steps_per_epoch(batch.epoch)
            self._position = (batch.epoch + 1, 0) if ended else (batch.epoch, batch.step + 1)
            yield batch

    def _produce(self, epoch: int, step: int) -> Iterator[Batch]:
        if self.config.workers:
            batches = iter(WorkerBatches(self._builder, epoch, step))
        else:
            batches = (self._builder.batch(*at) for at in self._builder.positions(epoch, step))
        for batch in batches:
            yield batch.pin_memory() if self._pin_memory else batch
