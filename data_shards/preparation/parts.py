"""Prepare one dataset by several processes, on machines that share a file system.

Three passes consist of independent pieces: the runs, one for each block of the source; the buckets of users;
and the shards. Part K of N makes every N-th piece of a pass (`prepare_part`) and skips pieces that exist.
When all parts are done, one process merges the pass (`merge_parts`): after the runs it adds up the totals
and collects the strings, after the buckets it selects users and items, after the shards it writes the tables
and the manifest. The dataset is bitwise the one that a single process writes.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from pathlib import Path
from typing import Any

import polars as pl

from longplay.data_shards.errors import DataError
from longplay.data_shards.preparation.buckets import sort_buckets
from longplay.data_shards.preparation.job import Job
from longplay.data_shards.preparation.names import hashes
from longplay.data_shards.preparation.options import PrepareOptions, WorkPlan
from longplay.data_shards.preparation.partition import write_share_of_runs
from longplay.data_shards.preparation.passes import read_events, select_events, sort_events, unchanged
from longplay.data_shards.preparation.pipeline import (
    Prepared,
    check_output,
    complete,
    disk_errors,
    job_key,
    lay_out,
    write_share_of_shards,
)
from longplay.data_shards.preparation.shares import Share
from longplay.data_shards.preparation.work_folder import WorkFolder, parts_folder, remove
from longplay.data_shards.preparation.workers import MAX_WORKERS, default_num_workers
from longplay.data_shards.progress import Progress, no_progress
from longplay.data_shards.readers.sources import Source

READ, SORT, WRITE = PASSES = ("read", "sort", "write")


def prepare_part(
    source: Source,
    out: Path,
    options: PrepareOptions,
    name: str,
    share: Share,
    progress: Progress = no_progress,
) -> list[int]:
    """Do a share of a pass. After an interruption, the same call resumes; if the share is done, it returns.

    Args:
        source: the events.
        out: the place of the dataset.
        options: which events are kept.
        name: the pass, one of `PASSES`.
        share: the part.
        progress: called as the work proceeds.

    Returns:
        The parts whose shares of the pass are not done.

    Raises:
        DataError: the source or an option is unusable, `out` exists and may not be replaced, the pass before
            is not merged, or another command or process works on `out`.
    """
    check_output(out, overwrite=options.overwrite)
    plan, key = _common_plan(source, options, share.num_parts)
    with parts_folder(out, options.scratch, key, share) as work:
        job = Job(source, work, options, plan, progress)
        if _is_due(job, name, share.num_parts) and not work.is_done(f"{name}-{share.part}"):
            with disk_errors(work):
                _DO[name](job, share)
                work.mark_done(f"{name}-{share.part}")
        return _missing(work, name, share.num_parts)


def merge_parts(
    source: Source,
    out: Path,
    options: PrepareOptions,
    name: str,
    num_parts: int,
    progress: Progress = no_progress,
) -> Prepared | None:
    """Complete a pass after all parts have done their shares. After the last pass, `out` is the dataset.

    After an interruption, the same call resumes; if the pass is complete, it returns.

    Args:
        source: the events.
        out: the place of the dataset.
        options: which events are kept.
        name: the pass, one of `PASSES`.
        num_parts: the number of parts.
        progress: called as the work proceeds.

    Raises:
        DataError: a part is missing, or see `prepare_part`.
    """
    check_output(out, overwrite=options.overwrite)
    plan, key = _common_plan(source, options, num_parts)
    with parts_folder(out, options.scratch, key, None) as work:
        job = Job(source, work, options, plan, progress)
        if not _is_due(job, name, num_parts):
            return None
        if missing := _missing(work, name, num_parts):
            raise DataError(
                f"{work.path}: {list_parts(missing, num_parts)} missing; run --pass {name} "
                f"--part K/{num_parts}, with --out and --scratch on a file system that all machines share"
            )
        if name == WRITE:
            return complete(job, out)
        with disk_errors(work):
            try:
                totals, names = read_events(job)
                if name == SORT:
                    select_events(job, sort_events(job, totals, names), names.get("user"))
            except DataError:
                remove(work)
                raise
        return None


def list_parts(parts: list[int], num_parts: int) -> str:
    """Return `part 2 of 4 is` or `parts 2, 3 of 4 are`."""
    numbers = ", ".join(map(str, parts))
    return f"part {numbers} of {num_parts} is" if len(parts) == 1 else f"parts {numbers} of {num_parts} are"


def _common_plan(source: Source, options: PrepareOptions, num_parts: int) -> tuple[WorkPlan, list[Any]]:
    """Return the plan of this machine, with the same pieces on every machine, and the key of the job."""
    plan = WorkPlan.make(source.max_events(), options.memory_bytes, MAX_WORKERS)
    probe = int(hashes(pl.Series(["longplay"]), 0)[0])  # strings must have one hash on all machines
    key = [num_parts, probe, *job_key(source, options, plan)]
    return dataclasses.replace(plan, num_workers=default_num_workers()), key


def _is_due(job: Job, name: str, num_parts: int) -> bool:
    """Return whether a pass is not complete.

    Raises:
        DataError: the pass before is not complete either.
    """
    due = WRITE if job.is_selected else SORT if job.is_read else READ
    if PASSES.index(name) > PASSES.index(due):
        raise DataError(
            f"{job.work.path}: pass {due} is not complete; run --pass {due} --part K/{num_parts} for each K, "
            f"then --pass {due} --merge {num_parts}"
        )
    return name == due


def _missing(work: WorkFolder, name: str, num_parts: int) -> list[int]:
    """Return the parts whose shares of a pass are not done."""
    return [part for part in range(1, num_parts + 1) if not work.is_done(f"{name}-{part}")]


def _read(job: Job, share: Share) -> None:
    with unchanged(job.source):
        write_share_of_runs(job, share)


def _sort(job: Job, share: Share) -> None:
    totals, _ = read_events(job)
    sort_buckets(job, totals, share)


def _write(job: Job, share: Share) -> None:
    write_share_of_shards(job, lay_out(job), share)


_DO: dict[str, Callable[[Job, Share], None]] = {READ: _read, SORT: _sort, WRITE: _write}
