"""The order of an epoch's rows: a pure function of the seed, the epoch and the users' lengths.

The shards, in an order drawn for the epoch, are dealt round-robin to lanes. Each lane divides its shards into
pools of consecutive shards, cuts the pool's sequences into windows, packs the windows into rows and shuffles
the rows. A step takes the same number of rows from every lane, so its content depends neither on the number
of ranks nor on earlier steps.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from longplay.data_shards.stream.config import StreamConfig
from longplay.data_shards.stream.packing import PackedRows, cut_windows

_SHARD_ORDER, _OFFSETS, _PACKING = 0, 1, 2  # keys of the random generators


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
