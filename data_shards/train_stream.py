"""The packed rows a rank trains on, from any step on, the same at every number of ranks."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import torch

from longplay.data_shards.dataset import Dataset
from longplay.data_shards.epoch_plan import EpochPlan, StreamConfig, usable_lanes
from longplay.data_shards.errors import DataError
from longplay.data_shards.prefetch import prefetch
from longplay.data_shards.splits import split_bounds

_KEPT_PLANS = 3
_OpenPools = dict[int, tuple[tuple[int, int], np.ndarray]]
"""lane -> ((epoch, pool), the items of the pool's shards)."""


@dataclass(frozen=True)
class Batch:
    """A rank's rows of one optimizer step, ordered by (lane, row number); B is 0 when its lanes have ended.

    Attributes:
        epoch, step: `step` counts from 0 within the epoch.
        item_ids: (B, L) int64, 0 = padding.
        targets: (B, L) int64, the event after each of `item_ids`, 0 = nothing to predict.
        seq_idx: (B, L) int32, the number of a slot's segment within its row; trailing padding is a segment
            too.
        row_lanes: (B,) int64, the lane of each row.
        row_numbers: (B,) int64, the row's number among its lane's rows of this step.
    """

    epoch: int
    step: int
    item_ids: torch.Tensor
    targets: torch.Tensor
    seq_idx: torch.Tensor
    row_lanes: torch.Tensor
    row_numbers: torch.Tensor


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

    Raises:
        DataError: more ranks than lanes, or nothing to train on.
    """

    def __init__(self, dataset: Dataset, config: StreamConfig, *, rank: int = 0, world_size: int = 1) -> None:
        assert 0 <= rank < world_size, f"rank {rank} of {world_size}"
        self.dataset, self.config = dataset, config
        self.num_lanes = usable_lanes(config, dataset.num_shards)
        if world_size > self.num_lanes:
            raise DataError(
                f"{world_size} ranks for {self.num_lanes} lanes: every rank needs a lane; raise "
                f"data.num_lanes (at most {dataset.num_shards}, the shards) or start {self.num_lanes} ranks"
            )
        self.lanes = [lane for lane in range(self.num_lanes) if lane * world_size // self.num_lanes == rank]
        self._num_train = split_bounds(dataset, config.split).num_train
        if not np.any(self._num_train > 1):
            raise DataError(
                f"{dataset.path}: the split leaves no user two events to train on; change data.split"
            )
        self._position = (0, 0)
        self._plans: dict[int, EpochPlan] = {}
        self._plans_lock = threading.Lock()

    def plan(self, epoch: int) -> EpochPlan:
        """The order of one epoch, with its `num_steps`, `num_targets`, `num_rows` and `padding_fraction`."""
        with self._plans_lock:
            if epoch not in self._plans:
                self._plans[epoch] = EpochPlan(
                    self.dataset.lengths,
                    self._num_train,
                    self.dataset.shard_ptr,
                    self.config,
                    num_lanes=self.num_lanes,
                    epoch=epoch,
                )
                while len(self._plans) > _KEPT_PLANS:
                    del self._plans[next(iter(self._plans))]
            return self._plans[epoch]

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

        Raises:
            DataError: a missing or damaged shard, by name.
        """
        for batch in prefetch(self._produce(*self._position), self.config.prefetch_steps):
            ended = batch.step + 1 == self.steps_per_epoch(batch.epoch)
            self._position = (batch.epoch + 1, 0) if ended else (batch.epoch, batch.step + 1)
            yield batch

    def _produce(self, epoch: int, step: int) -> Iterator[Batch]:
        open_pools: _OpenPools = {}
        while True:
            plan = self.plan(epoch)
            for number in range(step, plan.num_steps):
                yield self._batch(plan, number, open_pools)
            epoch, step = epoch + 1, 0

    def _batch(self, plan: EpochPlan, step: int, open_pools: _OpenPools) -> Batch:
        """Fills the rank's rows of one step."""
        length = self.config.context_length
        parts = [(lane, pool, rows) for lane in self.lanes for pool, rows in plan.step_rows(lane, step)]
        num_rows = sum(rows.num_rows for _, _, rows in parts)
        item_ids, targets = np.zeros((num_rows, length), np.int64), np.zeros((num_rows, length), np.int64)
        seq_idx = np.empty((num_rows, length), np.int32)
        lanes, numbers = np.empty(num_rows, np.int64), np.empty(num_rows, np.int64)
        begin, last_lane, in_lane = 0, -1, 0
        for lane, pool, rows in parts:
            end = begin + rows.num_rows
            items = self._items(plan, lane, pool, open_pools)
            sources, destinations, seq_idx[begin:end] = rows.slots(length)
            item_ids[begin:end].reshape(-1)[destinations] = items[sources]
            targets[begin:end].reshape(-1)[destinations] = items[sources + 1]
            in_lane = in_lane if lane == last_lane else 0
            lanes[begin:end], numbers[begin:end] = lane, np.arange(in_lane, in_lane + rows.num_rows)
            begin, last_lane, in_lane = end, lane, in_lane + rows.num_rows
        tensors = (torch.from_numpy(values) for values in (item_ids, targets, seq_idx, lanes, numbers))
        return Batch(plan.epoch, step, *tensors)

    def _items(self, plan: EpochPlan, lane: int, pool: int, open_pools: _OpenPools) -> np.ndarray:
        """The items of a lane's pool, shard after shard; of each lane one pool stays open."""
        key = (plan.epoch, pool)
        if lane not in open_pools or open_pools[lane][0] != key:
            shards = plan.lanes[lane][pool].shards
            items = np.concatenate([self.dataset.shard(shard).items for shard in shards])
            open_pools[lane] = (key, items)
        return open_pools[lane][1]
