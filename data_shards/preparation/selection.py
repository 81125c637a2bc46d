"""The third pass of `prepare`: select users and items, and number the items.

An event is kept if its user and its item are kept, so this pass writes no events: its state is one flag per
user and item.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from longplay.data_shards.errors import DataError
from longplay.data_shards.preparation.array_file import ArrayFile
from longplay.data_shards.preparation.buckets import Buckets
from longplay.data_shards.preparation.names import Names
from longplay.data_shards.preparation.sorting import stable_order
from longplay.data_shards.preparation.workers import in_order
from longplay.data_shards.progress import Progress, no_progress
from longplay.data_shards.storage.manifest import NUM_QUANTILES

USER_TOO_SHORT = "user_too_short"
ITEM_TOO_RARE = "item_too_rare"
_FIRST_DIGIT_BITS = 22
_DIGIT_BITS = 11


@dataclass(frozen=True)
class Selection:
    """The users and items that are kept.

    Attributes:
        user_original_ids: (users,) int64, ascending; ranks if the ids are strings.
        lengths: (users,) int64 number of kept events of each user.
        bucket, begin, stored: (users,) int64 bucket, first event and number of events of each user on disk.
        item_original_ids, item_counts: (items,) int64; entry i belongs to item id i + 1, counts are
            descending. The ids are ranks if they are strings.
        item_ids: (codes,) int32 item id of each code, 0 for dropped items.
        dropped: reason -> events.
    """

    user_original_ids: np.ndarray
    lengths: np.ndarray
    bucket: np.ndarray
    begin: np.ndarray
    stored: np.ndarray
    item_original_ids: np.ndarray
    item_counts: np.ndarray
    item_ids: np.ndarray
    dropped: dict[str, int]

    @property
    def num_events(self) -> int:
        return int(self.lengths.sum())

    def is_kept(self, buckets: Buckets, bucket: int) -> np.ndarray:
        """Return (events,) bool: which of a bucket's events are kept."""
        _, stored = buckets.users(bucket)
        of_users = np.zeros(int(stored.sum()) + 1, np.int64)
        here = self.bucket == bucket
        np.add.at(of_users, self.begin[here], 1)
        np.add.at(of_users, self.begin[here] + self.stored[here], -1)
        return (np.cumsum(of_users[:-1]) > 0) & (self.item_ids[buckets.item_codes(bucket)] > 0)

    def write(self, path: Path) -> None:
        """Save the selection for a process that resumes."""
        arrays = {name: value for name, value in vars(self).items() if name != "dropped"}
        ArrayFile.write(path, arrays, {"dropped": self.dropped})

    @classmethod
    def read(cls, path: Path) -> Selection:
        """Read the result of `write`."""
        file = ArrayFile(path)
        names = [name for name in cls.__dataclass_fields__ if name != "dropped"]
        return cls(**{name: file.read(name) for name in names}, dropped=file.meta["dropped"])


class _Counter:
    """Flags of the kept users and items, and the resulting counts.

    Attributes:
        users, stored, lengths: (users,) int64 original ids, events on disk, and kept events.
        user_ptr: (buckets + 1,) int64 first user of each bucket.
        item_is_kept, item_counts: (codes,) bool flag of each item, and int64 number of its kept events.
    """

    def __init__(
        self, buckets: Buckets, user_names: Names | None, num_workers: int, progress: Progress
    ) -> None:
        self._buckets, self._num_workers, self._progress = buckets, num_workers, progress
        tables = [buckets.users(bucket) for bucket in range(len(buckets))]
        users = np.concatenate([users for users, _ in tables])
        self.users = users if user_names is None else user_names.ranks(users)
        self.stored = np.concatenate([lengths for _, lengths in tables])
        self.lengths = self.stored.copy()
        self.user_ptr = np.cumsum([0, *(len(users) for users, _ in tables)])
        self.item_is_kept = np.ones(buckets.codes.num_codes, bool)
        self.item_counts = np.zeros(buckets.codes.num_codes, np.int64)

    def drop_short(self, min_user_events: int) -> int:
        """Drop users with too few events; return the number of dropped events."""
        short = self.lengths < min_user_events
        num_dropped = int(self.lengths[short].sum())
        self.lengths[short] = 0
        return num_dropped

    def drop_rare(self, min_item_events: int) -> int:
        """Drop items with too few events; return the number of dropped events."""
        rare = (self.item_counts > 0) & (self.item_counts < min_item_events)
        num_dropped = int(self.item_counts[rare].sum())
        self.item_is_kept[rare] = False
        self.item_counts[rare] = 0
        if num_dropped:
            self._count_users()
        return num_dropped

    def count_items(self) -> None:
        """Count the kept events of every item."""
        self.item_counts[:] = 0
        for _, codes, is_kept in self._kept_events("counting items"):
            np.add.at(self.item_counts, codes if is_kept.all() else codes[is_kept], 1)

    def _count_users(self) -> None:
        for bucket, _, is_kept in self._kept_events("counting events"):
            first, end = self.user_ptr[bucket : bucket + 2]
            before = np.concatenate([[0], np.cumsum(is_kept)])
            ptr = np.concatenate([[0], np.cumsum(self.stored[first:end])])
            self.lengths[first:end] = before[ptr[1:]] - before[ptr[:-1]]

    def _kept_events(self, stage: str) -> Iterator[tuple[int, np.ndarray, np.ndarray]]:
        """Yield the number of each bucket, its codes, and which of its events are kept."""

        def read(bucket: int) -> tuple[int, np.ndarray, np.ndarray]:
            codes = self._buckets.item_codes(bucket)
            return bucket, codes, self.is_kept(bucket, codes)

        done = 0
        for bucket, codes, is_kept in in_order(read, range(len(self._buckets)), self._num_workers):
            yield bucket, codes, is_kept
            done += len(codes)
            self._progress(stage, done, int(self.stored.sum()))

    def is_kept(self, bucket: int, codes: np.ndarray) -> np.ndarray:
        """Return (events,) bool: which events of a bucket are kept."""
        first, end = self.user_ptr[bucket : bucket + 2]
        is_kept = np.repeat(self.lengths[first:end] > 0, self.stored[first:end])
        return is_kept if self.item_is_kept.all() else is_kept & self.item_is_kept[codes]


def select(
    buckets: Buckets,
    *,
    min_user_events: int,
    min_item_events: int,
    user_names: Names | None = None,
    num_workers: int,
    progress: Progress = no_progress,
) -> tuple[Selection, np.ndarray]:
    """Drop rare items and short users repeatedly until all remaining ones have enough events.

    Returns:
        The selection, and the exact times at ranks i/1000 of its events in time order, rounded down to an
        event.

    Raises:
        DataError: no event remains.
    """
    counter = _Counter(buckets, user_names, num_workers, progress)
    dropped = {ITEM_TOO_RARE: 0, USER_TOO_SHORT: 0}
    if min_item_events <= 1:
        dropped[USER_TOO_SHORT] = counter.drop_short(min_user_events)
        counter.count_items()
    else:
        num_short = 1
        while num_short:
            counter.count_items()
            dropped[ITEM_TOO_RARE] += counter.drop_rare(min_item_events)
            num_short = counter.drop_short(min_user_events)
            dropped[USER_TOO_SHORT] += num_short
    if not counter.lengths.any():
        raise _nothing_left(counter, min_user_events, min_item_events)
    return _selected(buckets, counter, dropped), _time_quantiles(buckets, counter, num_workers, progress)


def _nothing_left(counter: _Counter, min_user_events: int, min_item_events: int) -> DataError:
    num_events, longest = int(counter.stored.sum()), int(counter.stored.max(initial=0))
    if min_item_events > 1:
        return DataError(
            f"nothing left of {num_events} usable events: no user has {min_user_events} events of items with "
            f"{min_item_events} events; lower --min-item-events or --min-user-events"
        )
    return DataError(
        f"nothing left: no user has {min_user_events} of the {num_events} usable events (the longest has "
        f"{longest}); lower --min-user-events (minimum 2), or check that --user is the column of the user"
    )


def _selected(buckets: Buckets, counter: _Counter, dropped: dict[str, int]) -> Selection:
    """Number the items, and order the users by id."""
    kept = np.flatnonzero(counter.lengths > 0)
    users = kept[np.argsort(counter.users[kept], kind="stable")]
    bucket = np.repeat(np.arange(len(buckets)), np.diff(counter.user_ptr))
    ends = np.cumsum(counter.stored)
    starts = np.concatenate([[0], ends])[counter.user_ptr[:-1]]  # events stored before each bucket
    codes = np.flatnonzero(counter.item_counts)
    counts = counter.item_counts[codes]
    by_count = stable_order(counts.max() - counts)
    codes, counts = codes[by_count], counts[by_count]
    item_ids = np.zeros(len(counter.item_counts), np.int32)
    item_ids[codes] = np.arange(1, len(codes) + 1)
    return Selection(
        user_original_ids=counter.users[users],
        lengths=counter.lengths[users],
        bucket=bucket[users],
        begin=(ends - counter.stored - starts[bucket])[users],
        stored=counter.stored[users],
        item_original_ids=buckets.codes.originals(codes),
        item_counts=counts,
        item_ids=item_ids,
        dropped={reason: count for reason, count in dropped.items() if count},
    )


def _time_quantiles(buckets: Buckets, counter: _Counter, num_workers: int, progress: Progress) -> np.ndarray:
    """Return the (1001,) int64 exact i/1000 quantiles of the kept events' times, by radix selection."""
    num_events = int(counter.lengths.sum())
    rest = np.arange(NUM_QUANTILES + 1) * (num_events - 1) // NUM_QUANTILES
    prefix = np.zeros(len(rest), np.uint64)  # the leading digits of each quantile found so far
    shift, width = buckets.time_bits, min(_FIRST_DIGIT_BITS, buckets.time_bits)
    while shift:
        shift -= width
        known, row = np.unique(prefix, return_inverse=True)

        def count(
            bucket: int, shift: int = shift, width: int = width, known: np.ndarray = known
        ) -> tuple[int, np.ndarray]:
            times = buckets.time_offsets(bucket)
            num_read = len(times)
            times = times[counter.is_kept(bucket, buckets.item_codes(bucket))] >> np.uint64(shift)
            digit = (times & np.uint64((1 << width) - 1)).astype(np.int64)
            if len(known) > 1 or shift + width < buckets.time_bits:
                head = times >> np.uint64(width)
                at = np.minimum(np.searchsorted(known, head), len(known) - 1)
                found = known[at] == head
                digit = (at[found] << width) + digit[found]
            return num_read, np.bincount(digit, minlength=len(known) << width)

        counts, done = np.zeros(len(known) << width, np.int64), 0
        for num_read, found in in_order(count, range(len(buckets)), num_workers):
            counts += found
            done += num_read
            progress("ordering times", done, int(counter.stored.sum()))
        before = np.cumsum(counts) - counts
        begin = before.reshape(len(known), -1)[row, 0]
        position = np.searchsorted(np.cumsum(counts), begin + rest, side="right")
        rest -= before[position] - begin
        prefix = (prefix << np.uint64(width)) | (position & ((1 << width) - 1)).astype(np.uint64)
        width = min(_DIGIT_BITS, shift)
    return prefix.astype(np.int64) + buckets.time_least
