"""The second pass of `prepare`: sort the events of each bucket into sequences.

A user is in one bucket only, so work on single users is done here, in memory: order by time, remove repeats,
limit the length.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np

from longplay.data_shards.errors import DataError
from longplay.data_shards.preparation.array_file import ArrayFile
from longplay.data_shards.preparation.item_codes import ItemCodes, ids_are_dense
from longplay.data_shards.preparation.job import Job
from longplay.data_shards.preparation.options import SORT_BYTES_PER_EVENT, PrepareOptions
from longplay.data_shards.preparation.partition import RunTotals, bucket_parts, open_runs
from longplay.data_shards.preparation.shares import WHOLE, Share
from longplay.data_shards.preparation.sorting import concatenated_ranges, narrowest, stable_order
from longplay.data_shards.preparation.workers import in_order

REPEATED_ITEM = "repeated_item"
OVER_MAX_USER_EVENTS = "over_max_user_events"
Ranges = tuple[np.ndarray, np.ndarray]
"""(N,) first events and (N,) numbers of events of N ranges in a bucket."""


class Buckets:
    """The sorted events on disk: the concatenated sequences of each bucket's users.

    Attributes:
        codes: the items' codes.
        time_least, time_bits: smallest time, and the number of bits of the largest distance from it.
        dropped: reason -> events dropped while sorting.
    """

    def __init__(self, folder: Path, num_buckets: int, codes: ItemCodes, totals: RunTotals) -> None:
        self.codes = codes
        self.time_least = totals.time_range[0]
        self.time_bits = (totals.time_range[1] - totals.time_range[0]).bit_length()
        self.dropped: dict[str, int] = {}
        self._files = [ArrayFile(folder / f"bucket-{number:05d}") for number in range(num_buckets)]
        self._codes_in = [
            file if codes.dense else ArrayFile(folder / f"codes-{number:05d}")
            for number, file in enumerate(self._files)
        ]
        for file in self._files:
            for reason, count in file.meta["dropped"].items():
                self.dropped[reason] = self.dropped.get(reason, 0) + count

    def __len__(self) -> int:
        return len(self._files)

    def users(self, bucket: int) -> tuple[np.ndarray, np.ndarray]:
        """Return (users,) int64 ids, or hashes of strings, ascending, and numbers of events."""
        return self._files[bucket].read("user"), self._files[bucket].read("length")

    def item_codes(self, bucket: int, ranges: Ranges | None = None) -> np.ndarray:
        """Return the codes of all events, or of those in some ranges."""
        return _part(self._codes_in[bucket], "item", ranges)

    def times(self, bucket: int, ranges: Ranges | None = None) -> np.ndarray:
        """Return the int64 times of all events, or of those in some ranges."""
        times = _part(self._files[bucket], "time", ranges)
        return times.astype(np.int64) + self.time_least if times.dtype == np.uint32 else times

    def feature(self, name: str, bucket: int, ranges: Ranges | None = None) -> np.ndarray:
        """Return the int64 or float32 values of a feature of all events, or of those in some ranges."""
        return _part(self._files[bucket], f"feature-{name}", ranges)

    def time_offsets(self, bucket: int) -> np.ndarray:
        """Return (events,) uint64 distances of the times from the smallest time."""
        times = self._files[bucket].read("time")
        if times.dtype == np.uint32:
            return times.astype(np.uint64)
        return times.astype(np.uint64) - np.uint64(self.time_least % (1 << 64))


def _part(file: ArrayFile, name: str, ranges: Ranges | None) -> np.ndarray:
    return file.read(name) if ranges is None else file.read_ranges(name, *ranges)


def sort_buckets(job: Job, totals: RunTotals, share: Share = WHOLE) -> None:
    """Write the buckets of a share, `bucket-00000`..., except those that exist.

    Raises:
        DataError: the events of a bucket do not fit into memory.
    """
    runs, folder, done = open_runs(job.runs, totals.num_runs), job.buckets, 0

    def work(bucket: int) -> int:
        path = folder / f"bucket-{bucket:05d}"
        if not path.exists():
            _sort_bucket(path, _load(runs, totals, bucket, job), totals, job.options)
        return ArrayFile(path).meta["num_read"]

    for num_read in in_order(work, share.of(job.plan.num_buckets), job.plan.num_workers):
        done += num_read
        job.progress("sorting", done, max(done, totals.num_events // share.num_parts))


@dataclass(frozen=True)
class _Events:
    """The events of one bucket in source order.

    Attributes:
        users: (users,) int64 ascending original ids.
        user: (events,) index of each event's user in `users`.
        columns: `item`, `time` and `feature-NAME` -> (events,) values, as in `bucket_parts`.
    """

    users: np.ndarray
    user: np.ndarray
    columns: dict[str, np.ndarray]


def _load(runs: list[ArrayFile], totals: RunTotals, bucket: int, job: Job) -> _Events:
    """Read a bucket from all runs.

    Raises:
        DataError: the bucket does not fit into memory.
    """
    sizes = [run.meta["event_ptr"][bucket + 1] - run.meta["event_ptr"][bucket] for run in runs]
    num_events = sum(sizes)
    features, num_workers = job.features, job.plan.num_workers
    event_bytes = SORT_BYTES_PER_EVENT + 16 * len(features)
    if num_events * event_bytes > max(job.options.memory_bytes // num_workers, 1 << 20):
        needed = -(-num_events * event_bytes * num_workers * 2 >> 30)
        raise DataError(
            f"{num_events} events of users that must be sorted together do not fit into --memory; pass "
            f"--memory {needed}GiB, or check that --user is the column of the user"
        )
    names = ("user", "count", "item", "time", *(f"feature-{name}" for name in features))
    parts = list(bucket_parts(runs, totals, bucket, features))
    parts = parts or [dict.fromkeys(names, np.empty(0, np.int64))]
    columns = {name: np.concatenate([part.pop(name) for part in parts]) for name in names}
    users, place = np.unique(columns.pop("user"), return_inverse=True)
    return _Events(users, np.repeat(place, columns.pop("count")), columns)


def _sort_bucket(path: Path, events: _Events, totals: RunTotals, options: PrepareOptions) -> None:
    """Sort the events of a bucket, apply the options and write the sequences."""
    num_read, dropped = len(events.user), {}
    order = stable_order(events.user, events.columns["time"])
    if options.dedup_latest:
        latest = latest_of_each_item(events.user[order], events.columns["item"][order])
        if len(latest) < len(order):
            dropped[REPEATED_ITEM] = len(order) - len(latest)
        order = order[latest]
    user = events.user[order] if options.dedup_latest else events.user  # otherwise, `order` has all events
    length = np.bincount(user, minlength=len(events.users))
    if options.max_user_events is not None and len(length) and length.max() > options.max_user_events:
        kept = np.minimum(length, options.max_user_events)
        dropped[OVER_MAX_USER_EVENTS] = int((length - kept).sum())
        order = order[concatenated_ranges(np.cumsum(length) - kept, kept)]
        length = kept
    arrays = {"user": events.users, "length": length}
    arrays |= {name: values[order] for name, values in events.columns.items()}
    arrays["time"] = narrowest(arrays["time"], *totals.time_range)
    if ids_are_dense(totals):
        arrays["item"] = narrowest(arrays["item"], *totals.item_range)
    ArrayFile.write(path, arrays, {"num_read": num_read, "dropped": dropped})


def latest_of_each_item(user: np.ndarray, item: np.ndarray) -> np.ndarray:
    """Return the ascending indices of each user's last event with each item, in events sorted by user."""
    order = stable_order(user, item)
    user, item = user[order], item[order]
    last = np.ones(len(order), bool)
    last[:-1] = (user[1:] != user[:-1]) | (item[1:] != item[:-1])
    return np.sort(order[last])
