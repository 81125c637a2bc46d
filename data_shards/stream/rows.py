"""Rows of some lanes, step by step: what a rank does by itself, or shares among its data workers."""

from __future__ import annotations

import threading
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, fields
from typing import Any

import numpy as np
import torch

from longplay.data_shards.storage.shard_store import ShardStore
from longplay.data_shards.stream.epoch_order import EpochPlan, StreamConfig

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

    def tensors(self) -> dict[str, torch.Tensor]:
        """The tensors by name."""
        names = (field.name for field in fields(self))
        return {name: getattr(self, name) for name in names if name not in ("epoch", "step")}

    def pin_memory(self) -> Batch:
        """The same in page-locked memory, from which a GPU copies without the CPU waiting."""
        return Batch(self.epoch, self.step, **{name: t.pin_memory() for name, t in self.tensors().items()})

    @classmethod
    def joined(cls, parts: Sequence[Batch]) -> Batch:
        """The rows of several parts of one step, in their order; ids may be int32 in the parts."""
        counts = [part.item_ids.shape[0] for part in parts]
        whole: dict[str, torch.Tensor] = {}
        for name, first in parts[0].tensors().items():
            dtype = torch.int32 if name == "seq_idx" else torch.int64
            whole[name] = torch.empty(sum(counts), *first.shape[1:], dtype=dtype)
            for part, place in zip(parts, whole[name].split(counts), strict=True):
                place.copy_(part.tensors()[name])
        return cls(parts[0].epoch, parts[0].step, **whole)


class RowBuilder:
    """Plans epochs and fills the rows of some lanes; can be pickled.

    Args:
        num_train: (users,) events of each user that are trained on.
        num_lanes: lanes of the whole stream.
        lanes: those whose rows are filled here.
    """

    def __init__(
        self,
        store: ShardStore,
        config: StreamConfig,
        num_train: np.ndarray,
        *,
        num_lanes: int,
        lanes: Sequence[int],
    ) -> None:
        self.store, self.config, self.lanes = store, config, list(lanes)
        self._num_train, self._num_lanes = num_train, num_lanes
        self.__setstate__({})

    def __getstate__(self) -> dict[str, Any]:
        return {n: v for n, v in self.__dict__.items() if n not in ("_plans", "_plans_lock", "_open_pools")}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        self._plans: dict[int, EpochPlan] = {}
        self._plans_lock = threading.Lock()
        self._open_pools: _OpenPools = {}

    def part(self, lanes: Sequence[int]) -> RowBuilder:
        """A builder of the rows of some of the lanes, with the same store."""
        return RowBuilder(self.store, self.config, self._num_train, num_lanes=self._num_lanes, lanes=lanes)

    def plan(self, epoch: int) -> EpochPlan:
        """The order of one epoch; safe to call from several threads."""
        with self._plans_lock:
            if epoch not in self._plans:
                self._plans[epoch] = EpochPlan(
                    self.store.lengths,
                    self._num_train,
                    self.store.shard_ptr,
                    self.config,
                    num_lanes=self._num_lanes,
                    epoch=epoch,
                )
                while len(self._plans) > _KEPT_PLANS:
                    del self._plans[next(iter(self._plans))]
            return self._plans[epoch]

    def positions(self, epoch: int, step: int) -> Iterator[tuple[int, int]]:
        """(epoch, step) from one on, without end."""
        while True:
            for number in range(step, self.plan(epoch).num_steps):
                yield epoch, number
            epoch, step = epoch + 1, 0

    def batch(self, epoch: int, step: int) -> Batch:
        """The lanes' rows of one step; fast when the steps come in their order.

        Raises:
            DataError: a missing or damaged shard, by name.
        """
        plan, length = self.plan(epoch), self.config.context_length
        parts = [(lane, pool, rows) for lane in self.lanes for pool, rows in plan.step_rows(lane, step)]
        num_rows = sum(rows.num_rows for _, _, rows in parts)
        item_ids, targets = np.zeros((num_rows, length), np.int64), np.zeros((num_rows, length), np.int64)
        seq_idx = np.empty((num_rows, length), np.int32)
        lanes, numbers = np.empty(num_rows, np.int64), np.empty(num_rows, np.int64)
        begin, last_lane, in_lane = 0, -1, 0
        for lane, pool, rows in parts:
            end = begin + rows.num_rows
            items = self._items(plan, lane, pool)
            sources, destinations, seq_idx[begin:end] = rows.slots(length)
            item_ids[begin:end].reshape(-1)[destinations] = items[sources]
            targets[begin:end].reshape(-1)[destinations] = items[sources + 1]
            in_lane = in_lane if lane == last_lane else 0
            lanes[begin:end], numbers[begin:end] = lane, np.arange(in_lane, in_lane + rows.num_rows)
            begin, last_lane, in_lane = end, lane, in_lane + rows.num_rows
        tensors = (torch.from_numpy(values) for values in (item_ids, targets, seq_idx, lanes, numbers))
        return Batch(epoch, step, *tensors)

    def _items(self, plan: EpochPlan, lane: int, pool: int) -> np.ndarray:
        """The items of a lane's pool, shard after shard; of each lane one pool stays open."""
        key = (plan.epoch, pool)
        if lane not in self._open_pools or self._open_pools[lane][0] != key:
            self._open_pools.pop(lane, None)  # so that its memory can be used again
            shards = plan.lanes[lane][pool].shards
            parts = [self.store.shard(shard, with_times=False).items for shard in shards]
            self._open_pools[lane] = (key, np.concatenate(parts) if len(parts) > 1 else parts[0])
        return self._open_pools[lane][1]
