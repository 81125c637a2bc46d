"""Fill the packed rows of a rank's lanes, step by step, from decoded shards."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import Executor
from dataclasses import dataclass, field, fields
from functools import cached_property
from typing import Any

import numpy as np
import torch

from longplay.data_shards.storage.shard_store import ShardStore
from longplay.data_shards.stream.columns import EventColumns, Events, SlotColumns, read_events
from longplay.data_shards.stream.epoch_order import EpochOrder, StreamConfig
from longplay.data_shards.stream.fill_rows import fill_rows

_KEPT_ORDERS = 3


@dataclass(frozen=True)
class Batch:
    """A rank's rows of one optimizer step, ordered by (lane, row number). B is 0 after its lanes have ended.

    Attributes:
        epoch: number of the epoch, from 0.
        step: number of the step within the epoch, from 0.
        item_ids: (B, L) int64, 0 = padding.
        targets: (B, L) int64, the item after each of `item_ids`, 0 = nothing to predict.
        seq_idx: (B, L) int32, number of each slot's segment within its row; trailing padding counts as one
            more segment.
        row_lanes: (B,) int64, the lane of each row.
        row_numbers: (B,) int64, the row's number among its lane's rows of this step.
        times: (B, L) int64, the time of each event, 0 = padding; None unless the stream delivers times.
        features: name -> (B, L) int32 codes or float32 values of each feature that the stream delivers; 0 =
            padding. A missing code is 0, a missing value NaN.
    """

    epoch: int
    step: int
    item_ids: torch.Tensor
    targets: torch.Tensor
    seq_idx: torch.Tensor
    row_lanes: torch.Tensor
    row_numbers: torch.Tensor
    times: torch.Tensor | None = None
    features: Mapping[str, torch.Tensor] = field(default_factory=dict)

    @cached_property
    def target_slots(self) -> torch.Tensor:
        """(V,) int64, the flat slots b * L + t that have a target, ascending. In the memory of `targets`."""
        # NumPy finds them ten times as fast as torch.nonzero does on a CPU.
        slots = torch.from_numpy(np.flatnonzero(self.targets.numpy()))
        return slots.pin_memory() if self.targets.is_pinned() else slots

    def map(self, function: Callable[[torch.Tensor], torch.Tensor]) -> Batch:
        """Return a batch with `function` applied to every tensor."""
        changed: dict[str, Any] = {}
        for name in (each.name for each in fields(self)):
            value = getattr(self, name)
            if isinstance(value, torch.Tensor):
                changed[name] = function(value)
            elif isinstance(value, Mapping):
                changed[name] = {key: function(tensor) for key, tensor in value.items()}
            else:
                changed[name] = value
        return Batch(**changed)

    def pin_memory(self) -> Batch:
        """Return a copy in page-locked memory, which a GPU can read asynchronously."""
        return self.map(torch.Tensor.pin_memory)


class RowBuilder:
    """Fills the rows of some lanes, in the order of each epoch.

    Args:
        store: reads the shards.
        config: how rows are cut, packed and ordered.
        num_train: (users,) int64 number of events of each user to train on.
        num_lanes: lanes of the whole stream.
        lanes: the lanes to fill.
        columns: the times and features to deliver.
    """

    def __init__(
        self,
        store: ShardStore,
        config: StreamConfig,
        num_train: np.ndarray,
        *,
        num_lanes: int,
        lanes: Sequence[int],
        columns: EventColumns,
    ) -> None:
        self._columns = columns
        self._store, self._config, self._lanes = store, config, list(lanes)
        self._num_train, self._num_lanes = num_train, num_lanes
        self._orders: dict[int, EpochOrder] = {}
        self._orders_lock = threading.Lock()
        # lane -> ((epoch, pool), events of the pool's shards). Each lane is filled by one thread at a time.
        self._open_pools: dict[int, tuple[tuple[int, int], Events]] = {}

    def order(self, epoch: int) -> EpochOrder:
        """Return the order of one epoch. Thread-safe; the latest few orders are cached."""
        with self._orders_lock:
            if epoch not in self._orders:
                self._orders[epoch] = EpochOrder(
                    self._store.lengths,
                    self._num_train,
                    self._store.shard_ptr,
                    self._config,
                    num_lanes=self._num_lanes,
                    epoch=epoch,
                )
                while len(self._orders) > _KEPT_ORDERS:
                    del self._orders[next(iter(self._orders))]
            return self._orders[epoch]

    def positions(self, epoch: int, step: int) -> Iterator[tuple[int, int]]:
        """Yield (epoch, step) pairs endlessly, starting with the given one."""
        while True:
            for number in range(step, self.order(epoch).num_steps):
                yield epoch, number
            epoch, step = epoch + 1, 0

    def batch(self, epoch: int, step: int, *, helpers: Executor, num_threads: int) -> Batch:
        """Fill the rows of one step. Consecutive steps are fast: each lane keeps one pool of shards open.

        Args:
            epoch: number of the epoch.
            step: number of the step within the epoch.
            helpers: executor that fills all parts but the first, which the calling thread fills.
            num_threads: number of parts into which the lanes are divided, at most the number of lanes. Does
                not change the batch.

        Raises:
            DataError: a shard is missing or damaged.
        """
        order, length = self.order(epoch), self._config.context_length
        num_rows = np.array([order.num_step_rows(lane, step) for lane in self._lanes])
        begins = np.cumsum(num_rows) - num_rows
        total = int(num_rows.sum())
        item_ids, targets = np.empty((total, length), np.int64), np.empty((total, length), np.int64)
        seq_idx = np.empty((total, length), np.int32)
        columns = SlotColumns.allocate(self._columns, (total, length))

        def fill(lanes: np.ndarray) -> None:
            for index in lanes.tolist():
                lane, begin = self._lanes[index], int(begins[index])
                for pool, rows in order.step_rows(lane, step):
                    part = slice(begin, begin + rows.num_rows)
                    events = self._events(order, lane, pool)
                    fill_rows(rows, events.items, item_ids[part], targets[part], seq_idx[part])
                    columns.fill(part, rows, events)
                    begin = part.stop

        first, *others = np.array_split(np.arange(len(self._lanes)), num_threads)
        pending = [helpers.submit(fill, part) for part in others]
        try:
            fill(first)
        finally:
            errors = [future.exception() for future in pending]
        for error in errors:
            if error is not None:
                raise error
        row_lanes = np.repeat(np.array(self._lanes, np.int64), num_rows)
        row_numbers = np.arange(total) - np.repeat(begins, num_rows)
        tensors = (
            torch.from_numpy(values) for values in (item_ids, targets, seq_idx, row_lanes, row_numbers)
        )
        features, times = columns.tensors()
        return Batch(epoch, step, *tensors, times=times, features=features)

    def _events(self, order: EpochOrder, lane: int, pool: int) -> Events:
        """Return the concatenated events of the shards of a lane's pool. The pool stays open."""
        key = (order.epoch, pool)
        if lane not in self._open_pools or self._open_pools[lane][0] != key:
            self._open_pools.pop(lane, None)  # free its memory before reading the next pool
            shards = order.lanes[lane][pool].shards
            self._open_pools[lane] = (key, read_events(self._store.shard, shards, self._columns))
        return self._open_pools[lane][1]
