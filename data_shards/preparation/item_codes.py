"""Represent the items of sorted events by codes until they are numbered by frequency.

A code is an id's distance from the smallest id if ids are dense, its rank if it is a string, otherwise its
index among the distinct ids.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np

from longplay.data_shards.preparation.array_file import ArrayFile
from longplay.data_shards.preparation.job import Job
from longplay.data_shards.preparation.names import Names
from longplay.data_shards.preparation.partition import RunTotals
from longplay.data_shards.preparation.workers import in_order

_ALWAYS_DENSE = 1 << 20
_MAX_SPARSITY = 4


@dataclass(frozen=True)
class ItemCodes:
    """The mapping from original ids to codes.

    Attributes:
        least: smallest original id, with code 0, if the ids are dense.
        num_codes: codes are 0..num_codes - 1.
        distinct: (items,) int64 ascending original ids, indexed by code; None if they are dense or strings.
        names: the strings, whose ranks are the codes; None if the ids are integers.
    """

    least: int
    num_codes: int
    distinct: np.ndarray | None = None
    names: Names | None = None

    @property
    def dense(self) -> bool:
        return self.distinct is None and self.names is None

    def find(self, items: np.ndarray) -> np.ndarray:
        """Return the (N,) codes of (N,) ascending items, if they are not dense."""
        if self.names is not None:
            return self.names.ranks(items)
        assert self.distinct is not None
        return np.searchsorted(self.distinct, items)

    def originals(self, codes: np.ndarray) -> np.ndarray:
        """Return the (N,) int64 original ids of (N,) codes, or the ranks of strings."""
        return codes.astype(np.int64) + self.least if self.distinct is None else self.distinct[codes]


def ids_are_dense(totals: RunTotals) -> bool:
    """Return whether a table over the whole range of item ids is small compared with the events."""
    low, high = totals.item_range
    return "item" not in totals.named and high - low < max(
        _ALWAYS_DENSE, min(_MAX_SPARSITY * totals.num_events, 1 << 31)
    )


def number_items(job: Job, totals: RunTotals, names: Names | None) -> ItemCodes:
    """Choose the items' codes. If ids are sparse or strings, write `codes-00000`... next to the buckets."""
    folder, numbers, num_workers = job.buckets, range(job.plan.num_buckets), job.plan.num_workers
    low, high = totals.item_range
    if ids_are_dense(totals):
        return ItemCodes(low, high - low + 1)
    if names is not None:
        codes = ItemCodes(0, len(names), names=names)
    else:
        path = folder / "distinct-items"
        if not path.exists():
            ArrayFile.write(path, {"item": _distinct_items(folder, numbers, num_workers)})
        distinct = ArrayFile(path).read("item")
        codes = ItemCodes(0, len(distinct), distinct)

    def work(bucket: int) -> int:
        coded = folder / f"codes-{bucket:05d}"
        items = ArrayFile(folder / f"bucket-{bucket:05d}")
        if not coded.exists():
            found, place = np.unique(items.read("item"), return_inverse=True)
            ArrayFile.write(coded, {"item": codes.find(found)[place].astype(np.uint32)})
        return items.length("item")

    done = 0
    for num_read in in_order(work, numbers, num_workers):
        done += num_read
        job.progress("numbering items", done, totals.num_events)
    return codes


def _distinct_items(folder: Path, numbers: range, num_workers: int) -> np.ndarray:
    """Return the distinct items in ascending order, merging whenever the buffer is as long as the result."""
    known, waiting, num_waiting = np.empty(0, np.int64), [], 0

    def work(bucket: int) -> np.ndarray:
        return np.unique(ArrayFile(folder / f"bucket-{bucket:05d}").read("item"))

    for found in in_order(work, numbers, num_workers):
        waiting.append(found)
        num_waiting += len(found)
        if num_waiting >= len(known):
            known, waiting, num_waiting = np.unique(np.concatenate([known, *waiting])), [], 0
    return np.unique(np.concatenate([known, *waiting]))
