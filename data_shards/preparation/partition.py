"""The first pass of `prepare`: parse the blocks of a source and partition their events by user into buckets.

A run holds the events of one block, grouped by user, with users grouped by bucket. A bucket is read from all
runs in order, which restores the source's order of each user's events.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from longplay.data_shards.preparation.array_file import ArrayFile
from longplay.data_shards.preparation.job import Job
from longplay.data_shards.preparation.names import integers_of, write_names
from longplay.data_shards.preparation.shares import WHOLE, Share
from longplay.data_shards.preparation.sorting import concatenated_ranges, narrowest, stable_order
from longplay.data_shards.preparation.workers import in_order
from longplay.data_shards.readers.bad_rows import BadRows
from longplay.data_shards.readers.sources import Block, ParsedBlock

BEFORE_FROM = "before_from"
AFTER_UNTIL = "after_until"
_HASH = np.uint64(0x9E3779B97F4A7C15)
_MIN_INT64, _MAX_INT64 = -(2**63), 2**63 - 1


@dataclass
class RunTotals:
    """Totals over all runs.

    Attributes:
        num_runs: number of runs.
        rows_in, num_events: rows read, and events kept.
        bad_rows: unusable rows.
        dropped: reason -> number of usable rows that the options exclude.
        item_range, time_range: smallest and largest value; (0, 0) without events.
        named: roles of the columns that hold strings.
        first_rows: what is added to the times of each run: the number of its first row in the source if times
            are row numbers, otherwise 0.
    """

    num_runs: int = 0
    rows_in: int = 0
    num_events: int = 0
    bad_rows: BadRows = field(default_factory=BadRows)
    dropped: dict[str, int] = field(default_factory=dict)
    item_range: tuple[int, int] = (0, 0)
    time_range: tuple[int, int] = (0, 0)
    named: list[str] = field(default_factory=list)
    first_rows: list[int] = field(default_factory=list)

    def account(self) -> str:
        """Return the dropped rows by reason, as one line."""
        reasons = {**self.bad_rows.counts, **self.dropped}
        return ", ".join(f"{count} {reason}" for reason, count in reasons.items())

    def to_json(self) -> dict[str, Any]:
        """Return plain data for `from_json`."""
        return {**vars(self), "bad_rows": self.bad_rows.to_json()}

    @classmethod
    def from_json(cls, content: dict[str, Any]) -> RunTotals:
        """Restore the result of `to_json`."""
        ranges = {name: tuple(content[name]) for name in ("item_range", "time_range")}
        return cls(**{**content, **ranges, "bad_rows": BadRows.from_json(content["bad_rows"])})


def write_runs(job: Job) -> RunTotals:
    """Write the runs of all blocks, except those that exist, and return their totals.

    Reading stops early if the unusable rows so far are more than twice the allowed share of the expected
    number of rows.

    Raises:
        DataError: the source cannot be read, or too many of its rows are unusable.
    """
    totals, weight, total_weight = RunTotals(), 0, max(1, job.source.total_weight())
    part, rows_before, by_row = None, 0, job.source.time_unit() == "index"
    for block, meta in _runs(job, WHOLE):
        if block.part != part:
            part, rows_before = block.part, 0
        totals.bad_rows.add(BadRows.from_json(meta["bad_rows"]), rows_before)
        rows_before += meta["rows_in"]
        _add(totals, meta, totals.rows_in if by_row else 0)
        weight += block.weight
        expected = max(totals.rows_in, totals.rows_in * total_weight // max(1, weight))
        if weight < total_weight:
            totals.bad_rows.check(2 * expected, job.options.max_bad_fraction, estimated=True)
        job.progress("reading", totals.rows_in, expected)
    return totals


def write_share_of_runs(job: Job, share: Share) -> None:
    """Write the runs of a share, except those that exist. The number of unusable rows is not checked.

    Raises:
        DataError: the source cannot be read.
    """
    weight, num_rows, total_weight = 0, 0, max(1, job.source.total_weight() // share.num_parts)
    for block, meta in _runs(job, share):
        weight += block.weight
        num_rows += meta["rows_in"]
        job.progress("reading", num_rows, max(num_rows, num_rows * total_weight // max(1, weight)))


def _runs(job: Job, share: Share) -> Iterator[tuple[Block, dict[str, Any]]]:
    """Write the runs of a share, except those that exist; yield each block and the data of its run."""
    folder, seed = job.runs, job.hash_seed

    def work(numbered: tuple[int, Block]) -> tuple[Block, dict[str, Any]]:
        number, block = numbered
        path = _run_path(folder, number)
        if not path.exists():
            _write_run(path, block.parse(), job, seed)
        return block, ArrayFile(path).meta

    blocks = enumerate(job.source.blocks(job.plan.block_bytes))
    return in_order(work, (pair for pair in blocks if share.has(pair[0])), job.plan.num_workers)


def _run_path(folder: Path, number: int) -> Path:
    return folder / f"run-{number:07d}"


def open_runs(folder: Path, num_runs: int) -> list[ArrayFile]:
    """Return the runs in the order of the source."""
    return [ArrayFile(_run_path(folder, number)) for number in range(num_runs)]


def _write_run(path: Path, block: ParsedBlock, job: Job, seed: int) -> None:
    """Write the events of a block, grouped by bucket and user, and the distinct strings of its columns.

    `seed` is that of the hash of strings.
    """
    options, num_buckets = job.options, job.plan.num_buckets
    dropped, columns, named = dict(block.dropped), {"time": block.time}, []
    for role, values in {"user": block.user, "item": block.item, **block.features}.items():
        if isinstance(values, np.ndarray) and values.dtype.kind == "f":
            columns[role] = values
            continue
        columns[role], names = integers_of(values, seed)
        if names is not None:
            named.append(role)
            write_names(path.with_name(f"names-{role}-{path.name}.parquet"), names)
    for limit, reason in ((options.from_time, BEFORE_FROM), (options.until_time, AFTER_UNTIL)):
        if limit is None:
            continue
        kept = columns["time"] >= limit if reason == BEFORE_FROM else columns["time"] < limit
        if not kept.all():
            dropped[reason] = int(np.count_nonzero(~kept))
            columns = {role: values[kept] for role, values in columns.items()}
    user, item, time = (columns.pop(role) for role in ("user", "item", "time"))
    by_user = stable_order(user)
    user = user[by_user]
    first = np.flatnonzero(np.diff(user, prepend=user[:1] - 1)) if len(user) else np.empty(0, np.int64)
    users, counts = user[first], np.diff(first, append=len(user))
    bucket = bucket_of(users, num_buckets)
    order = np.argsort(bucket, kind="stable")
    events = by_user[concatenated_ranges(first[order], counts[order])]
    user_ptr = np.searchsorted(bucket[order], np.arange(num_buckets + 1))
    event_ptr = np.concatenate([[0], np.cumsum(counts[order])])[user_ptr]
    item_range, time_range = _range(item), _range(time)
    meta = {
        "rows_in": block.rows_in,
        "num_events": len(user),
        "bad_rows": block.bad_rows.to_json(),
        "dropped": dropped,
        "item_range": item_range,
        "time_range": time_range,
        "named": named,
        "user_ptr": user_ptr.tolist(),
        "event_ptr": event_ptr.tolist(),
    }
    arrays = {
        "user": users[order],
        "count": counts[order],
        "item": narrowest(item[events], *item_range),
        "time": narrowest(time[events], *time_range),
        **{f"feature-{name}": values[events] for name, values in columns.items()},
    }
    ArrayFile.write(path, arrays, meta)


def bucket_of(users: np.ndarray, num_buckets: int) -> np.ndarray:
    """Return the (N,) int64 bucket of each user. A hash of the id spreads users evenly."""
    mixed = users.astype(np.uint64) * _HASH
    return ((mixed >> np.uint64(32)) % np.uint64(num_buckets)).astype(np.int64)


def bucket_parts(
    runs: list[ArrayFile], totals: RunTotals, bucket: int, features: Sequence[str]
) -> Iterator[dict[str, np.ndarray]]:
    """Yield the events of a bucket from every run that has some, in the order of the source.

    Yields:
        `user`, `count`: (users,) int64 users and their numbers of events; `item`, `time`: (events,) int64;
        and `feature-NAME`: (events,) int64 or float32 values of each feature.
    """
    for run, first_row in zip(runs, totals.first_rows, strict=True):
        (first, end), (begin, stop) = (
            run.meta[name][bucket : bucket + 2] for name in ("user_ptr", "event_ptr")
        )
        if first < end:
            yield {
                "user": run.read("user", first, end),
                "count": run.read("count", first, end),
                "item": _widened(run.read("item", begin, stop), run.meta["item_range"][0]),
                "time": _widened(run.read("time", begin, stop), run.meta["time_range"][0]) + first_row,
                **{f"feature-{name}": run.read(f"feature-{name}", begin, stop) for name in features},
            }


def _widened(values: np.ndarray, least: int) -> np.ndarray:
    """Undo `narrowest`: return int64 values."""
    return values.astype(np.int64) + least if values.dtype == np.uint32 else values


def _range(values: np.ndarray) -> tuple[int, int]:
    return (int(values.min()), int(values.max())) if len(values) else (0, 0)


def _add(totals: RunTotals, meta: dict, first_row: int) -> None:
    """Add the counts of one run to the totals. `first_row` is added to its times."""
    totals.num_runs += 1
    totals.first_rows.append(first_row)
    totals.named = sorted({*totals.named, *meta["named"]})
    totals.rows_in += meta["rows_in"]
    for reason, count in meta["dropped"].items():
        totals.dropped[reason] = totals.dropped.get(reason, 0) + count
    if meta["num_events"]:
        for name in ("item_range", "time_range"):
            low, high = getattr(totals, name) if totals.num_events else (_MAX_INT64, _MIN_INT64)
            added = first_row if name == "time_range" else 0
            setattr(totals, name, (min(low, meta[name][0] + added), max(high, meta[name][1] + added)))
    totals.num_events += meta["num_events"]
