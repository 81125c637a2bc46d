"""Stream the packed histories whose next event is predicted in validation and test."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field

import numpy as np
import torch

from longplay.common.settings import Count, NonNegativeInt, settings_class
from longplay.data_shards.errors import DataError
from longplay.data_shards.storage.dataset import Dataset
from longplay.data_shards.stream.columns import EventColumns, Events, SlotColumns, read_events
from longplay.data_shards.stream.config import SplitConfig
from longplay.data_shards.stream.epoch_order import group_shards, pool_users
from longplay.data_shards.stream.packing import PackedRows
from longplay.data_shards.stream.prefetch import prefetch
from longplay.data_shards.stream.splits import Part, split_bounds

_MIN_POOL_EVENTS = 1_000_000


@settings_class
class EvalConfig:
    """How histories are cut, packed and distributed over ranks.

    Attributes:
        context_length: slots in a row; a longer history keeps its latest events.
        rows_per_batch: rows of one batch of one rank.
        split: how events are divided into training, validation and test.
        max_users: maximum number of evaluated users, sampled with `seed`; None: all users.
        seed: seed of the sample.
        prefetch_batches: batches prepared ahead in the background; 0: none.
    """

    context_length: Count = 200
    rows_per_batch: Count = 32
    split: SplitConfig = field(default_factory=SplitConfig)
    max_users: Count | None = None
    seed: NonNegativeInt = 0
    prefetch_batches: NonNegativeInt = 2


@dataclass(frozen=True)
class EvalBatch:
    """Histories of Q users packed into B rows. A query is one history; its target is the next event.

    Attributes:
        number: number of the batch among the batches of all ranks.
        item_ids: (B, L) int64, 0 = padding.
        seq_idx: (B, L) int32, number of each slot's segment within its row; trailing padding counts as one
            more segment.
        query_rows, query_slots: (Q,) int64, row and slot of each history's last event.
        targets: (Q,) int64, the item to predict.
        users: (Q,) int64, indices of the users.
        seen_ptr: (Q + 1,) int64, first entry of each query in `seen_items`.
        seen_items: int64; the entries of a query are the distinct item ids of the user's whole history
            without the target, in ascending order.
        times, features: of the events of `item_ids`, as in `Batch`.
    """

    number: int
    item_ids: torch.Tensor
    seq_idx: torch.Tensor
    query_rows: torch.Tensor
    query_slots: torch.Tensor
    targets: torch.Tensor
    users: torch.Tensor
    seen_ptr: torch.Tensor
    seen_items: torch.Tensor
    times: torch.Tensor | None = None
    features: Mapping[str, torch.Tensor] = field(default_factory=dict)


@dataclass(frozen=True)
class _Pool:
    """Consecutive shards and the rows packed from their users' histories.

    Attributes:
        shards: indices of the shards.
        rows: the packed rows; their `sources` index the concatenated items of `shards`.
        first_batch: number of the first batch.
        num_batches: number of batches.
    """

    shards: tuple[int, ...]
    rows: PackedRows
    first_batch: int
    num_batches: int


class EvalStream:
    """The batches of one rank for one part of the split.

    The batches of all ranks together do not depend on the number of ranks.

    Args:
        dataset: the prepared dataset.
        config: how histories are cut, packed and distributed.
        part: the part of the split whose events are predicted.
        rank: rank of this process.
        world_size: number of ranks.
        columns: the times and features to deliver.

    Attributes:
        num_users: evaluated users of all ranks. Includes users whose shard is skipped later; they have no
            query.
        num_batches: batches of all ranks. Batch i belongs to rank i % world_size.
        num_rounds: maximum number of batches of a rank. Lets all ranks run the same number of collectives.

    Raises:
        DataError: the split leaves no user to evaluate.
    """

    def __init__(
        self,
        dataset: Dataset,
        config: EvalConfig,
        part: Part,
        *,
        rank: int = 0,
        world_size: int = 1,
        columns: EventColumns = EventColumns(),  # noqa: B008 -- immutable
    ) -> None:
        assert 0 <= rank < world_size, f"rank {rank} of {world_size}"
        self.dataset, self.config, self.part, self._columns = dataset, config, part, columns
        self._rank, self._world_size = rank, world_size
        self._target_at = _sample_users(split_bounds(dataset, config.split).targets[part], config)
        self.num_users = int(np.count_nonzero(self._target_at >= 0))
        if self.num_users == 0:
            raise DataError(f"{dataset.path}: the split leaves no user for {part}; change data.split")
        self._pools: list[_Pool] = []
        self.num_batches = 0
        order = np.arange(dataset.num_shards)
        min_events = max(_MIN_POOL_EVENTS, config.rows_per_batch * config.context_length)
        for shards in group_shards(order, dataset.lengths, dataset.shard_ptr, min_events):
            rows = self._pack(shards)
            batches = -(-rows.num_rows // config.rows_per_batch)
            self._pools.append(_Pool(shards, rows, self.num_batches, batches))
            self.num_batches += batches
        self.num_rounds = -(-self.num_batches // world_size)

    def __iter__(self) -> Iterator[EvalBatch]:
        """Yield the rank's batches that have at least one query. Each call starts at the first batch.

        Raises:
            DataError: a shard is missing or damaged.
        """
        return prefetch(self._produce(), self.config.prefetch_batches)

    def _pack(self, shards: tuple[int, ...]) -> PackedRows:
        """Pack the histories of the evaluated users of some shards."""
        users, begins = pool_users(shards, self.dataset.lengths, self.dataset.shard_ptr)
        target_at = self._target_at[users]
        kept = target_at >= 0
        length = np.minimum(target_at[kept], self.config.context_length)
        return PackedRows.pack(
            users[kept], begins[kept] + target_at[kept] - length, length, self.config.context_length
        )

    def _produce(self) -> Iterator[EvalBatch]:
        for pool in self._pools:
            mine = [
                number
                for number in range(pool.first_batch, pool.first_batch + pool.num_batches)
                if number % self._world_size == self._rank
            ]
            if mine:
                events = read_events(self.dataset.shard, pool.shards, self._columns)
                for number in mine:
                    start = (number - pool.first_batch) * self.config.rows_per_batch
                    stop = min(start + self.config.rows_per_batch, pool.rows.num_rows)
                    batch = self._batch(number, pool.rows.rows(start, stop), events)
                    if len(batch.users):
                        yield batch

    def _batch(self, number: int, rows: PackedRows, events: Events) -> EvalBatch:
        """Fill the rows of one batch. The target of a history is the event after its segment."""
        items, shape = events.items, (rows.num_rows, self.config.context_length)
        item_ids = np.zeros(shape, np.int64)
        sources, destinations, seq_idx = rows.slots(self.config.context_length)
        item_ids.reshape(-1)[destinations] = items[sources]
        query_rows, query_slots = rows.last_slots()
        target_in_items = rows.sources + rows.lengths
        targets = items[target_in_items].astype(np.int64)
        readable = targets > 0  # 0 in a skipped shard
        query_rows, query_slots, targets, users, target_in_items = (
            values[readable] for values in (query_rows, query_slots, targets, rows.users, target_in_items)
        )
        history = self._target_at[users]
        seen_ptr, seen_items = _seen(items, target_in_items - history, history, targets)
        arrays = (item_ids, seq_idx, query_rows, query_slots, targets, users, seen_ptr, seen_items)
        columns = SlotColumns.allocate(self._columns, shape)
        columns.fill(slice(None), rows, events)
        features, times = columns.tensors()
        tensors = (torch.from_numpy(values) for values in arrays)
        return EvalBatch(number, *tensors, times=times, features=features)


def _sample_users(target_at: np.ndarray, config: EvalConfig) -> np.ndarray:
    """Return `target_at` with -1 for all but `max_users` of the evaluated users."""
    evaluated = np.flatnonzero(target_at >= 0)
    if config.max_users is None or len(evaluated) <= config.max_users:
        return target_at
    chosen = np.random.default_rng(config.seed).choice(evaluated, config.max_users, replace=False)
    sampled = np.full_like(target_at, -1)
    sampled[chosen] = target_at[chosen]
    return sampled


def _seen(
    items: np.ndarray, begins: np.ndarray, lengths: np.ndarray, targets: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """Return the distinct items of the histories `items[begin : begin + length]` without their targets.

    Returns:
        seen_ptr: (Q + 1,) int64, first entry of each query in `seen_items`.
        seen_items: int64, ascending within a query.
    """
    query = np.repeat(np.arange(len(lengths)), lengths)
    within = np.arange(len(query)) - np.repeat(np.cumsum(lengths) - lengths, lengths)
    item = items[begins[query] + within].astype(np.int64)
    other = item != targets[query]
    width = np.int64(items.max()) + 1
    keys = np.unique(query[other] * width + item[other])
    seen_ptr = np.searchsorted(keys, np.arange(len(lengths) + 1) * width)
    return seen_ptr, keys % width
