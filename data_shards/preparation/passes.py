"""The first three passes of `prepare`. Each reads its result if an earlier process has written it."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager

import numpy as np

from longplay.common.atomic import write_bytes
from longplay.data_shards.errors import DataError
from longplay.data_shards.preparation.array_file import ArrayFile
from longplay.data_shards.preparation.buckets import Buckets, sort_buckets
from longplay.data_shards.preparation.item_codes import number_items
from longplay.data_shards.preparation.job import SELECTION, TOTALS, Job
from longplay.data_shards.preparation.names import CollisionError, Names, merge_names
from longplay.data_shards.preparation.partition import RunTotals, write_runs
from longplay.data_shards.preparation.selection import Selection, select
from longplay.data_shards.readers.bad_rows import BLANK_LINE
from longplay.data_shards.readers.sources import Source

_QUANTILES = "time-quantiles"


def read_events(job: Job) -> tuple[RunTotals, dict[str, Names]]:
    """Partition the events. Return the totals, and the names of each column of strings.

    Raises:
        DataError: the source is unusable, or has no event.
    """
    account, names = job.work.path / TOTALS, job.work.path / "names"
    if job.is_read:
        totals = RunTotals.from_json(json.loads(account.read_text()))
    else:
        totals = _write_runs(job)
        write_bytes(account, json.dumps(totals.to_json()).encode(), sync=False)
    return totals, {role: Names.read(names / f"names-{role}.parquet") for role in totals.named}


def _write_runs(job: Job) -> RunTotals:
    """Partition the events. If two strings have the same hash, repeat with another seed."""
    with unchanged(job.source):
        totals = write_runs(job)
    totals.bad_rows.check(totals.rows_in, job.options.max_bad_fraction)
    where = ", ".join(job.source.describe()["paths"]) or "events"
    if totals.rows_in == totals.bad_rows.counts.get(BLANK_LINE, 0):
        raise DataError(f"{where}: no events, only a header or blank lines; pass a file with events")
    if totals.num_events == 0:
        raise DataError(
            f"{where}: all {totals.rows_in} rows are dropped ({totals.account()}); choose other options"
        )
    try:
        for role in totals.named:
            merge_names(job.runs, job.work.folder("names"), role, job.options.memory_bytes // 2)
    except CollisionError:
        (job.work.path / f"seed-{job.hash_seed}.failed").touch()
        shutil.rmtree(job.runs)
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
    if not job.work.is_done("sort"):
        sort_buckets(job, totals)
        job.work.mark_done("sort")
    shutil.rmtree(job.work.path / "runs", ignore_errors=True)
    codes = number_items(job, totals, names.get("item"))
    return Buckets(job.buckets, job.plan.num_buckets, codes, totals)


def select_events(job: Job, buckets: Buckets, user_names: Names | None) -> tuple[Selection, np.ndarray]:
    """Select users and items. Return the selection, and the quantiles of the times.

    Raises:
        DataError: no event remains.
    """
    kept, quantiles = job.work.path / SELECTION, job.work.path / _QUANTILES
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
