"""Count, shard by shard, what makes results on a dataset untrustworthy."""

from __future__ import annotations

import numpy as np

from longplay.data_shards.audit.baselines import Histories
from longplay.data_shards.progress import Track
from longplay.data_shards.storage.dataset import Dataset
from longplay.data_shards.storage.shard_reader import DecodedShard
from longplay.data_shards.stream.splits import MIN_LEAVE_ONE_OUT


class Scan:
    """Counts over all events, and the sequences of some users. Reads every shard once, one at a time.

    Args:
        dataset: the dataset.
        users: (N,) int64 users whose sequences are kept, in ascending order.
        track: reports progress.

    Attributes:
        duplicates: events with the user, item and time of an earlier event.
        immediate_repeats: events with the item of the user's previous event.
        numbered_users: users with at least 3 events whose times are consecutive integers.
        single_item_users: users whose events are all of one item.
        tied_targets: users with at least 3 events, of several items at the time of the last event.
        train_counts: (num_items + 1,) int64 training events of each item.
        test_items: (evaluated users,) int32 last item of each user with at least 3 events.
        test_times: (evaluated users,) int64 its time.
    """

    def __init__(self, dataset: Dataset, users: np.ndarray, track: Track) -> None:
        self.duplicates = self.immediate_repeats = 0
        self.numbered_users = self.single_item_users = self.tied_targets = 0
        self.train_counts = np.zeros(dataset.num_items + 1, np.int64)
        self._dataset = dataset
        self._edges = np.unique(dataset.manifest.time_quantiles)
        self._train_per_bin = np.zeros(len(self._edges), np.int64)
        test_items, test_times, kept = [], [], []
        for index in track(range(dataset.num_shards), "auditing shards"):
            shard = dataset.shard(index)
            self._count(shard)
            last = (shard.ptr[1:] - 1)[np.diff(shard.ptr) >= MIN_LEAVE_ONE_OUT]
            assert shard.times is not None
            test_items.append(shard.items[last])
            test_times.append(shard.times[last])
            begin, end = np.searchsorted(users, dataset.shard_ptr[index : index + 2])
            kept.append(_events_of(shard, users[begin:end] - dataset.shard_ptr[index]))
        self.test_items, self.test_times = np.concatenate(test_items), np.concatenate(test_times)
        _, items = np.unique(np.concatenate([items for items, _ in kept]), return_inverse=True)
        times = np.concatenate([times for _, times in kept])
        ptr = np.concatenate([[0], np.cumsum(dataset.lengths[users])])
        self.histories = Histories(items, times, ptr, dataset.num_items)

    def _count(self, shard: DecodedShard) -> None:
        items, times, ptr = shard.items, shard.times, shard.ptr
        assert times is not None
        lengths = np.diff(ptr)
        user = np.repeat(np.arange(len(lengths)), lengths)
        evaluated = lengths >= MIN_LEAVE_ONE_OUT
        inside = np.ones(len(items), bool)  # events that have a previous event
        inside[ptr[:-1]] = False
        inside = inside[1:]
        repeated = inside & (items[1:] == items[:-1])
        self.immediate_repeats += int(np.count_nonzero(repeated))
        self.single_item_users += _count_full(repeated, user, lengths - 1)
        numbered = inside & (times[1:] - times[:-1] == 1)
        self.numbered_users += _count_full(numbered, user, np.where(evaluated, lengths - 1, -1))

        group = np.cumsum(np.append(True, ~(inside & (times[1:] == times[:-1]))))
        pairs = np.sort(group * (self._dataset.num_items + 1) + items)
        self.duplicates += int(np.count_nonzero(pairs[1:] == pairs[:-1]))
        last = ptr[1:][user] - 1
        differs = (times == times[last]) & (items != items[last])
        self.tied_targets += int(
            np.count_nonzero(evaluated & (np.bincount(user[differs], minlength=len(lengths)) > 0))
        )

        train = _is_train(ptr)
        self.train_counts += np.bincount(items[train], minlength=len(self.train_counts))
        self._train_per_bin += np.bincount(self._bins(times[train]), minlength=len(self._edges))

    def _bins(self, times: np.ndarray) -> np.ndarray:
        """Return the (N,) last edge that is not after each time."""
        return np.searchsorted(self._edges, times, side="right") - 1

    def median_training_time(self, track: Track) -> int:
        """Return the exact lower median of the training events' times. Reads every shard once more.

        The first reading counted the training events between the dataset's time quantiles. This one collects
        only the times in the interval that contains the median.
        """
        through = np.cumsum(self._train_per_bin)
        place = (through[-1] - 1) // 2
        chosen = int(np.searchsorted(through, place, side="right"))
        values, counts = [], []
        for index in track(range(self._dataset.num_shards), "finding the median time"):
            shard = self._dataset.shard(index)
            assert shard.times is not None
            times = shard.times[_is_train(shard.ptr)]
            found = np.unique(times[self._bins(times) == chosen], return_counts=True)
            values.append(found[0])
            counts.append(found[1])
        value, count = np.concatenate(values), np.concatenate(counts)
        order = np.argsort(value)
        before = through[chosen] - self._train_per_bin[chosen]
        at = np.searchsorted(before + np.cumsum(count[order]), place, side="right")
        return int(value[order][at])


def _is_train(ptr: np.ndarray) -> np.ndarray:
    """Return (events,) bool: whether each event is trained on with the leave-one-out split."""
    lengths = np.diff(ptr)
    num_train = np.where(lengths >= MIN_LEAVE_ONE_OUT, lengths - 2, lengths)
    return np.arange(ptr[-1]) < np.repeat(ptr[:-1] + num_train, lengths)


def _count_full(steps: np.ndarray, user: np.ndarray, expected: np.ndarray) -> int:
    """Count the users with the expected number of marked steps.

    Args:
        steps: (events - 1,) bool mark of each event but the first.
        user: (events,) int64 user of each event.
        expected: (users,) int64; -1 never matches.
    """
    found = np.bincount(user[1:][steps], minlength=len(expected))
    return int(np.count_nonzero(found == expected))


def _events_of(shard: DecodedShard, users: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return the concatenated items and times of some of a shard's users, numbered in the shard."""
    assert shard.times is not None
    begins, lengths = shard.ptr[users], np.diff(shard.ptr)[users]
    at = np.arange(lengths.sum()) + np.repeat(begins - (np.cumsum(lengths) - lengths), lengths)
    return shard.items[at], shard.times[at]
