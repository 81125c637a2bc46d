"""Divide events into training, validation and test. A prepared dataset can be read with any split."""

from __future__ import annotations

import functools
from dataclasses import dataclass
from typing import Literal

import numpy as np

from longplay.data_shards.errors import DataError
from longplay.data_shards.storage.dataset import Dataset
from longplay.data_shards.storage.manifest import NUM_QUANTILES
from longplay.data_shards.stream.config import SplitConfig

Part = Literal["validation", "test"]
MIN_LEAVE_ONE_OUT = 3
"""Users with fewer events are not evaluated; all of their events are used for training."""


@dataclass(frozen=True)
class SplitBounds:
    """How each user's events are divided, as indices into the user's sequence.

    Attributes:
        num_train: (users,) int64; events [0, num_train) are trained on.
        targets: part -> (users,) int64 index of the event to predict from all events before it; -1 if the
            user is not evaluated.
    """

    num_train: np.ndarray
    targets: dict[Part, np.ndarray]


@functools.lru_cache(maxsize=2)
def split_bounds(dataset: Dataset, split: SplitConfig) -> SplitBounds:
    """Divide every user's sequence. The result is cached.

    `temporal` reads all shards; the users of a skipped shard are neither trained on nor evaluated.
    `leave_one_out` reads no shard, so it includes the users of shards that are skipped later. Their events
    then read as 0.
    """
    if split.kind == "leave_one_out":
        evaluated = dataset.lengths >= MIN_LEAVE_ONE_OUT
        return SplitBounds(
            num_train=np.where(evaluated, dataset.lengths - 2, dataset.lengths),
            targets={
                "validation": np.where(evaluated, dataset.lengths - 2, -1),
                "test": np.where(evaluated, dataset.lengths - 1, -1),
            },
        )
    val_begin, test_begin = cutoffs(dataset, split)
    before_val, before_test = _count_before(dataset, val_begin), _count_before(dataset, test_begin)
    in_val = (before_val >= 1) & (before_val < before_test)
    in_test = (before_test >= 1) & (before_test < dataset.lengths)
    return SplitBounds(
        num_train=before_val,
        targets={"validation": np.where(in_val, before_val, -1), "test": np.where(in_test, before_test, -1)},
    )


def cutoffs(dataset: Dataset, split: SplitConfig) -> tuple[int, int]:
    """Return the times at which validation and test begin in a `temporal` split.

    The fractions are rounded to multiples of 1/1000.

    Raises:
        DataError: too many events have the same time to give three nonempty parts.
    """
    test = round((1 - split.test_fraction) * NUM_QUANTILES)
    val = round((1 - split.test_fraction - split.val_fraction) * NUM_QUANTILES)
    times = dataset.manifest.time_quantiles
    if not times[0] < times[val] < times[test]:
        raise DataError(
            f"data.split.kind temporal: validation starts at {times[val]} and test at {times[test]}, so a "
            "part is empty; use larger data.split.val_fraction and data.split.test_fraction, or "
            "data.split.kind leave_one_out"
        )
    return times[val], times[test]


def _count_before(dataset: Dataset, time: int) -> np.ndarray:
    """Return (users,) int64 number of each user's events before `time`; 0 in a skipped shard."""
    counts = []
    for index in range(dataset.num_shards):
        shard = dataset.shard(index)
        if index in dataset.store.skipped:
            counts.append(np.zeros(len(shard.ptr) - 1, np.int64))
            continue
        assert shard.times is not None
        before = np.concatenate([[0], np.cumsum(shard.times < time)])
        counts.append(before[shard.ptr[1:]] - before[shard.ptr[:-1]])
    return np.concatenate(counts)


def train_item_counts(dataset: Dataset, split: SplitConfig) -> np.ndarray:
    """Return (num_items + 1,) int64 number of training events of each item id; 0 for the padding id 0.

    Skipped shards are not counted.
    """
    num_train = split_bounds(dataset, split).num_train
    counts = np.zeros(dataset.num_items + 1, np.int64)
    for index in range(dataset.num_shards):
        shard = dataset.shard(index, with_times=False)
        train = num_train[dataset.shard_ptr[index] : dataset.shard_ptr[index + 1]]
        position = np.arange(len(shard.items)) - np.repeat(shard.ptr[:-1], np.diff(shard.ptr))
        counts += np.bincount(
            shard.items[position < np.repeat(train, np.diff(shard.ptr))], minlength=len(counts)
        )
    counts[0] = 0  # the events of skipped shards
    return counts
