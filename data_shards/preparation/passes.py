"""The first three passes of `prepare`. Each reads its result if an earlier process has written it."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass

import numpy as np

from longplay.common.atomic import write_bytes
from longplay.data_shards.errors import DataError
from longplay.data_shards.preparation.array_file import ArrayFile
from longplay.data_shards.preparation.buckets import BucketOptions, Buckets, number_items, sort_buckets
from longplay.data_shards.preparation.names import CollisionError, Names, merge_names
from longplay.data_shards.preparation.options import PrepareOptions, WorkPlan
from longplay.data_shards.preparation.partition import RunOptions, RunTotals, write_runs
from longplay.data_shards.preparation.selection import Selection, select
from longplay.data_shards.preparation.work_folder import WorkFolder
from longplay.data_shards.progress import Progress
from longplay.data_shards.readers.bad_rows import BLANK_LINE
from longplay.data_shards.readers.sources import Source

_TOTALS, _SELECTION, _QUANTILES = "totals.json", "selection", "time-quantiles"


@dataclass(frozen=True)
class Job:
    """What is prepared, and where.

    Attributes:
        source: the events.
        work: the temporary folders.
        options: which events are kept.
        plan: how the work is divided.
        progress: called as the work proceeds.
    """

    source: Source
    work: WorkFolder
    options: PrepareOptions
    plan: WorkPlan
    progress: Progress

    @property
    def is_read(self) -> bool:
        """Whether the first pass is complete."""
        return (self.work.path / _TOTALS).exists()

    @property
    def is_selected(self) -> bool:
        """Whether the second and the third pass are complete."""
        return (self.work.path / _SELECTION).exists()

    def run_options(self) -> RunOptions:
        """Return the options of the first pass."""
        return RunOptions(
            block_bytes=self.plan.block_bytes,
            num_buckets=self.plan.num_buckets,
            num_workers=self.plan.num_workers,
            from_time=self.options.from_time,
            until_time=self.options.until_time,
            max_bad_fraction=self.options.max_bad_fraction,
            by_row=self.source.time_unit() == "index",
            seed=sum(1 for _ in self.work.path.glob("seed-*.failed")),
        )

    def bucket_options(self) -> BucketOptions:
        """Return the options of the second pass."""
        return BucketOptions(
            num_buckets=self.plan.num_buckets,
            num_workers=self.plan.num_workers,
            dedup_latest=self.options.dedup_latest,
            max_user_events=self.options.max_user_events,
            memory_bytes=self.options.memory_bytes // self.plan.num_workers,
            features=tuple(name for name, _ in self.source.features()),
        )


def read_events(job: Job) -> tuple[RunTotals, dict[str, Names]]:
    """Partition the events. Return the totals, and the names of each column of strings.

    Raises:
        DataError: the source is unusable, or has no event.
    """
    account, names = job.work.path / _TOTALS, job.work.path / "names"
    if job.is_read:
        totals = RunTotals.from_json(json.loads(account.read_text()))
    else:
        totals = _write_runs(job)
        write_bytes(account, json.dumps(totals.to_json()).encode(), sync=False)
    return totals, {role: Names.read(names / f"names-{role}.parquet") for role in totals.named}


def _write_runs(job: Job) -> RunTotals:
    """Partition the events. If two strings have the same hash, repeat with another seed."""
    runs, options = job.work.folder("runs"), job.run_options()
    with unchanged(job.source):
        totals = write_runs(job.source, runs, options, job.progress)
    totals.bad_rows.check(totals.rows_in, options.max_bad_fraction)
    where = ", ".join(job.source.describe()["paths"]) or "events"
    if totals.rows_in == totals.bad_rows.counts.get(BLANK_LINE, 0):
        raise DataError(f"{where}: no events, only a header or blank lines; pass a file with events")
    if totals.num_events == 0:
        raise DataError(
            f"{where}: all {totals.rows_in} rows are dropped ({totals.account()}); choose other options"
        )
    try:
        for role in totals.named:
            merge_names(runs, job.work.folder("names"), role, job.options.memory_bytes // 2)
    except CollisionError:
        (job.work.path / f"seed-{options.seed}.failed").touch()
        shutil.rmtree(runs)
        return _write_runs(job)
    return totals


@contextmanager
def unchanged(source: Source) -> Iterator[None]:
    """Check that the source does not change while it is read.

    Raises:
        DataError: its fingerprint has changed.
    """
    before = source.fingerprint()
    yield
    if (after := source.fingerprint()) == before:
        return
    changed = next((one for one, other in zip(before, after, strict=False) if one != other), None)
    name = changed[0] if isinstance(changed, list) and changed else "the input"
    raise DataError(f"{name}: changed while it was read; wait until it is complete, then repeat the command")


def sort_events(job: Job, totals: RunTotals, names: Mapping[str, Names]) -> Buckets:
    """Sort the events of each bucket, then delete the runs.

    Raises:
        DataError: the events of a bucket do not fit into memory.
    """
    folder, options = job.work.folder("buckets"), job.bucket_options()
    if not job.work.is_done("sort"):
        sort_buckets(job.work.folder("runs"), folder, totals, options, job.progress)
        job.work.mark_done("sort")
    shutil.rmtree(job.work.path / "runs", ignore_errors=True)
    codes = number_items(folder, totals, options, names.get("item"), job.progress)
    return Buckets(folder, job.plan.num_buckets, codes, totals)


def select_events(job: Job, buckets: Buckets, user_names: Names | None) -> tuple[Selection, np.ndarray]:
    """Select users and items. Return the selection, and the quantiles of the times.

    Raises:
        DataError: no event remains.
    """
    kept, quantiles = job.work.path / _SELECTION, job.work.path / _QUANTILES
    if job.is_selected:
        return Selection.read(kept), ArrayFile(quantiles).read("time")
    try:
        selection, time_quantiles = select(
            buckets,
            min_user_events=job.options.min_user_events,
            min_item_events=job.options.min_item_events,
            user_names=user_names,
            num_workers=job.plan.num_workers,
            progress=job.progress,
        )
    except DataError as error:
        raise DataError(f"{', '.join(job.source.describe()['paths']) or 'events'}: {error}") from None
    ArrayFile.write(quantiles, {"time": time_quantiles})
    selection.write(kept)
    return selection, time_quantiles
