"""The order of an epoch's rows: a pure function of the seed, the epoch and the users' lengths.

The shards, in an order drawn for the epoch, are dealt round-robin to lanes. Each lane divides its shards into
pools of consecutive shards, cuts the pool's sequences into windows, packs the windows into rows and shuffles
the rows. A step takes the same number of rows from every lane, so its content depends neither on the number
of ranks nor on earlier steps.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Literal

import numpy as np

from longplay.common.settings import Count, NonNegativeInt, settings_class
from longplay.data_shards.storage.shard_store import OnBadShard
from longplay.data_shards.stream.packing import PackedRows, cut_windows
from longplay.data_shards.stream.splits import SplitConfig

_MIN_POOL_ROWS = 512
_MIN_POOL_EVENTS = 1_000_000
_SHARD_ORDER, _OFFSETS, _PACKING = 0, 1, 2  # keys of the random generators


@settings_class
class StreamConfig:
    """How training rows are cut, packed, ordered and read.

    Attributes:
        context_length: Slots in a row.
        rows_per_step: Rows of one optimizer step, over all ranks and micro-batches.
        num_lanes: Independent parts of the stream. Each rank owns whole lanes, so this is the maximum number
            of ranks.
        mode: windows = train on every transition once per epoch; last = train on each user's latest
            `context_length` transitions.
        split: How events are divided into training, validation and test.
        seed: Seed of the order and the cuts.
        pool_rows: Minimum number of rows that are packed and shuffled together. None = 512 rows or a
            million events, whichever is more.
        prefetch_steps: Steps prepared ahead in the background. 0 = none; rows are filled when a step needs
            them.
        reader_threads: Threads of each rank that read shards and fill rows, at most one per lane. 0 = no
            background threads, as with `prefetch_steps` 0. Does not change the batches.
        on_bad_shard: Stop at a missing, truncated or corrupt shard, or skip it with a warning.
    """

    context_length: Count = 200
    rows_per_step: Count = 120
    num_lanes: Count = 12
    mode: Literal["windows", "last"] = "windows"
    split: SplitConfig = field(default_factory=SplitConfig)
    seed: NonNegativeInt = 0
    pool_rows: Count | None = None
    prefetch_steps: NonNegativeInt = 2
    reader_threads: NonNegativeInt = 1
    on_bad_shard: OnBadShard = "stop"

    def __post_init__(self) -> None:
        if self.rows_per_step % self.num_lanes:
            below = self.rows_per_step // self.num_lanes * self.num_lanes
            nearest = " or ".join(str(n) for n in (below, below + self.num_lanes) if n)
            raise ValueError(
                f"rows_per_step={self.rows_per_step}: must be a multiple of num_lanes = {self.num_lanes}; "
                f"nearest valid: {nearest}"
            )

    def pool_events(self) -> int:
        """Return the minimum number of events in a pool. A lane's last pool may have fewer."""
        if self.pool_rows is not None:
            return self.pool_rows * self.context_length
        return max(_MIN_POOL_ROWS * self.context_length, _MIN_POOL_EVENTS)


def usable_lanes(config: StreamConfig, num_shards: int) -> int:
    """Return `config.num_lanes`, lowered with a warning to at most `num_shards`. Divides `rows_per_step`."""
    if config.num_lanes <= num_shards:
        return config.num_lanes
    lanes = max(n for n in range(1, num_shards + 1) if config.rows_per_step % n == 0)
    warnings.warn(
        f"data.num_lanes {config.num_lanes} is lowered to {lanes}: the dataset has {num_shards} shards",
        stacklevel=2,
    )
    return lanes


@dataclass(frozen=True)
class Pool:
    """Consecutive shards of a lane and the rows packed from their training transitions.

    Attributes:
        shards: indices of the shards.
        rows: the packed rows; their `sources` index the concatenated items of `shards`.
    """

    shards: tuple[int, ...]
    rows: PackedRows


class EpochOrder:
    """The rows of every lane in one epoch.

    Args:
        lengths: (users,) int64 number of events of each user.
        num_train: (users,) int64 number of events of each user to train on.
        shard_ptr: (shards + 1,) int64 first user of each shard.
        config: how rows are cut, packed and ordered.
        num_lanes: number of lanes, at most the number of shards.
        epoch: number of the epoch, from 0.

    Attributes:
        lanes: the pools of each lane.
        rows_per_lane_step: rows that a step takes from each lane.
        num_rows, num_targets: rows and training targets of the epoch.
        num_steps: steps of the epoch; the longest lane determines them.
        padding_fraction: share of slots that hold padding.
    """

    def __init__(
        self,
        lengths: np.ndarray,
        num_train: np.ndarray,
        shard_ptr: np.ndarray,
        config: StreamConfig,
        *,
        num_lanes: int,
        epoch: int,
    ) -> None:
        assert num_lanes <= len(shard_ptr) - 1, "more lanes than shards"
        self._lengths, self._num_train, self._shard_ptr = lengths, num_train, shard_ptr
        self._config, self.epoch = config, epoch
        self.rows_per_lane_step = config.rows_per_step // num_lanes
        order = self._rng(_SHARD_ORDER).permutation(len(shard_ptr) - 1)
        self.lanes: list[list[Pool]] = []
        for lane in range(num_lanes):
            pools = group_shards(order[lane::num_lanes], lengths, shard_ptr, config.pool_events())
            self.lanes.append([self._pack(shards, lane, number) for number, shards in enumerate(pools)])
        self._lane_rows = [np.cumsum([0, *(pool.rows.num_rows for pool in lane)]) for lane in self.lanes]
        self.num_rows = sum(int(rows[-1]) for rows in self._lane_rows)
        self.num_targets = sum(pool.rows.num_filled for lane in self.lanes for pool in lane)
        self.num_steps = max(-(-int(rows[-1]) // self.rows_per_lane_step) for rows in self._lane_rows)
        self.padding_fraction = 1 - self.num_targets / max(1, self.num_rows * config.context_length)

    def step_rows(self, lane: int, step: int) -> Iterator[tuple[int, PackedRows]]:
        """Yield (number of the pool in the lane, rows of the pool) for the rows of `lane` in `step`."""
        begin = step * self.rows_per_lane_step
        end = begin + self.rows_per_lane_step
        starts = self._lane_rows[lane]
        for number, pool in enumerate(self.lanes[lane]):
            low, high = max(begin, int(starts[number])), min(end, int(starts[number + 1]))
            if low < high:
                yield number, pool.rows.rows(low - int(starts[number]), high - int(starts[number]))

    def num_step_rows(self, lane: int, step: int) -> int:
        """Return the number of rows of `lane` in `step`."""
        left = int(self._lane_rows[lane][-1]) - step * self.rows_per_lane_step
        return min(max(left, 0), self.rows_per_lane_step)

    def _rng(self, *purpose: int) -> np.random.Generator:
        return np.random.default_rng([self._config.seed, self.epoch, *purpose])

    def _pack(self, shards: tuple[int, ...], lane: int, number: int) -> Pool:
        """Cut and pack the training transitions of the shards of one pool."""
        users, begins = pool_users(shards, self._lengths, self._shard_ptr)
        limit = self._config.context_length
        if self._config.mode == "windows":
            draws = [
                self._rng(_OFFSETS, shard).integers(
                    1, limit + 1, self._shard_ptr[shard + 1] - self._shard_ptr[shard]
                )
                for shard in shards
            ]
            offsets = np.concatenate(draws)
        else:
            offsets = np.full(len(users), limit)
        num_transitions = self._num_train[users] - 1
        kept = num_transitions >= 1
        users, begins, offsets, num_transitions = (
            values[kept] for values in (users, begins, offsets, num_transitions)
        )
        if self._config.mode == "windows":
            run, start, length = cut_windows(num_transitions, limit, offsets)
        else:
            run, length = np.arange(len(users)), np.minimum(num_transitions, limit)
            start = num_transitions - length
        rng = self._rng(_PACKING, lane, number)
        return Pool(shards, PackedRows.pack(users[run], begins[run] + start, length, limit, rng))


def group_shards(
    order: np.ndarray, lengths: np.ndarray, shard_ptr: np.ndarray, min_events: int
) -> list[tuple[int, ...]]:
    """Divide shards into consecutive groups of at least `min_events` events; the last may have fewer.

    Args:
        order: (N,) indices of the shards.
        lengths: (users,) int64 number of events of each user.
        shard_ptr: (shards + 1,) int64 first user of each shard.
        min_events: minimum number of events of a group.
    """
    events = np.add.reduceat(lengths, shard_ptr[:-1])
    groups, current, num_events = [], [], 0
    for shard in order.tolist():
        current.append(shard)
        num_events += int(events[shard])
        if num_events >= min_events:
            groups.append(tuple(current))
            current, num_events = [], 0
    return [*groups, tuple(current)] if current else groups


def pool_users(
    shards: tuple[int, ...], lengths: np.ndarray, shard_ptr: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """Return the users of `shards` and the offset of each user's events in the shards' concatenated items.

    Returns:
        users, begins: (users,) int64 each.
    """
    users = np.concatenate([np.arange(shard_ptr[shard], shard_ptr[shard + 1]) for shard in shards])
    return users, np.cumsum(lengths[users]) - lengths[users]
