"""Stream the packed rows that a rank trains on. Resumes at any step.

The global batch of a step does not depend on the number of ranks.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from longplay.common.daemon_threads import DaemonThreads
from longplay.data_shards.errors import DataError
from longplay.data_shards.storage.dataset import Dataset
from longplay.data_shards.stream.columns import EventColumns
from longplay.data_shards.stream.config import StreamConfig
from longplay.data_shards.stream.epoch_order import EpochOrder, usable_lanes
from longplay.data_shards.stream.prefetch import prefetch
from longplay.data_shards.stream.rows import Batch, RowBuilder
from longplay.data_shards.stream.splits import split_bounds

__all__ = ["Batch", "TrainStream", "check_stream"]


def check_stream(dataset: Dataset, config: StreamConfig, world_size: int) -> None:
    """Check that a run can train and validate on the dataset.

    Raises:
        DataError: there are more ranks than lanes, no training events, or no users for validation.
    """
    TrainStream(dataset, config, world_size=world_size)
    if not np.any(split_bounds(dataset, config.split).targets["validation"] >= 0):
        raise DataError(
            f"{dataset.path}: the split leaves no user to validate on; change data.split, or prepare a "
            "dataset with longer histories"
        )


class TrainStream:
    """An endless iterator over the batches of one rank. Its state is the position of the next batch.

    Args:
        dataset: the prepared dataset.
        config: how rows are cut, packed, ordered and read.
        rank: rank of this process. Each rank owns a block of consecutive lanes.
        world_size: number of ranks.
        columns: the times and features to deliver.
        pin_memory: allocate batches in page-locked memory, for a GPU.

    Raises:
        DataError: there are more ranks than lanes, or no training events.
    """

    def __init__(
        self,
        dataset: Dataset,
        config: StreamConfig,
        *,
        rank: int = 0,
        world_size: int = 1,
        columns: EventColumns = EventColumns(),  # noqa: B008 -- immutable
        pin_memory: bool = False,
    ) -> None:
        assert 0 <= rank < world_size, f"rank {rank} of {world_size}"
        self.dataset, self.config, self._pin_memory = dataset, config, pin_memory
        self.num_lanes = usable_lanes(config, dataset.num_shards)
        if world_size > self.num_lanes:
            raise DataError(
                f"{world_size} ranks for {self.num_lanes} lanes: every rank needs a lane; raise "
                f"data.num_lanes (at most {dataset.num_shards}, the number of shards) or start "
                f"{self.num_lanes} ranks"
            )
        self.lanes = [lane for lane in range(self.num_lanes) if lane * world_size // self.num_lanes == rank]
        num_train = split_bounds(dataset, config.split).num_train
        if not np.any(num_train > 1):
            raise DataError(
                f"{dataset.path}: the split leaves no user with two events to train on; change data.split"
            )
        self._builder = RowBuilder(
            dataset.store, config, num_train, num_lanes=self.num_lanes, lanes=self.lanes, columns=columns
        )
        self._position = (0, 0)

    def order(self, epoch: int) -> EpochOrder:
        """Return the order of one epoch, which includes its numbers of steps, rows and targets."""
        return self._builder.order(epoch)

    def steps_per_epoch(self, epoch: int) -> int:
        """Return the number of steps of one epoch. Equal on all ranks; varies slightly between epochs."""
        return self.order(epoch).num_steps

    def state_dict(self) -> dict[str, int]:
        """Return the position of the next batch."""
        epoch, step = self._position
        return {"epoch": epoch, "step": step}

    def load_state_dict(self, state: dict[str, int]) -> None:
        """Move to a saved position. Takes effect at the next `iter()`.

        Raises:
            DataError: the epoch has no such step, so the state belongs to another dataset or configuration.
        """
        epoch, step = int(state["epoch"]), int(state["step"])
        if epoch < 0 or not 0 <= step < self.steps_per_epoch(epoch):
            raise DataError(
                f"stream position epoch {epoch}, step {step} does not exist for {self.dataset.path} with "
                "these data settings; resume with the dataset and settings of the run"
            )
        self._position = (epoch, step)

    def __iter__(self) -> Iterator[Batch]:
        """Yield batches endlessly, starting at the current position.

        Closing or dropping the iterator ends its threads.

        Raises:
            DataError: a shard is missing or damaged.
        """
        depth = self.config.prefetch_steps if self.config.reader_threads else 0
        for batch in prefetch(self._produce(*self._position), depth):
            ended = batch.step + 1 == self.steps_per_epoch(batch.epoch)
            self._position = (batch.epoch + 1, 0) if ended else (batch.epoch, batch.step + 1)
            yield batch

    def _produce(self, epoch: int, step: int) -> Iterator[Batch]:
        """Fill the batches with the calling thread and `reader_threads - 1` helpers."""
        num_threads = min(max(1, self.config.reader_threads), len(self.lanes))
        with DaemonThreads(num_threads - 1, "longplay-reader") as helpers:
            for position in self._builder.positions(epoch, step):
                batch = self._builder.batch(*position, helpers=helpers, num_threads=num_threads)
                batch = batch.pin_memory() if self._pin_memory else batch
                batch.target_slots  # noqa: B018 -- cached, so that this thread computes it
                yield batch
