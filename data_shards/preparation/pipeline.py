"""Turn a source into a prepared dataset folder: out of core, resumable and atomic.

Four passes: parse the blocks of the source and partition their events by user (`partition`), sort each bucket
of users (`buckets`), select users and items and number the items (`selection`), write the shards (`writing`).
When the same command is repeated after an interruption, finished work is reused.
"""

from __future__ import annotations

import dataclasses
import json
import shutil
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from longplay.common.atomic import replace_folder, write_bytes
from longplay.data_shards.errors import DataError
from longplay.data_shards.preparation.array_file import ArrayFile
from longplay.data_shards.preparation.buckets import (
    SORT_BYTES_PER_EVENT,
    BucketOptions,
    Buckets,
    number_items,
    sort_buckets,
)
from longplay.data_shards.preparation.partition import RunOptions, RunTotals, write_runs
from longplay.data_shards.preparation.selection import Selection, select
from longplay.data_shards.preparation.work_folder import WorkFolder, remove, work_folder
from longplay.data_shards.preparation.workers import default_num_workers
from longplay.data_shards.preparation.writing import assign_users, default_num_shards, write_shards
from longplay.data_shards.progress import Progress, no_progress
from longplay.data_shards.readers.bad_rows import BLANK_LINE, BadRows
from longplay.data_shards.readers.sources import Source
from longplay.data_shards.storage.manifest import (
    ITEMS_NAME,
    USERS_NAME,
    Manifest,
    dataset_fingerprint,
    is_dataset,
)

DEFAULT_MEMORY_BYTES = 4 << 30
MIN_MEMORY_BYTES = 256 << 20
SCRATCH_BYTES_PER_EVENT = 18
"""Peak disk use, including the dataset, if ids and times span less than 2**32."""
_MOST_BLOCK_BYTES = 64 << 20
_LEAST_BLOCK_BYTES = 1 << 20
_MEMORY_PER_BLOCK_BYTE = 12  # of a block of text, while it is parsed and split
_SHARE_FOR_SORTING = 0.5
_MOST_BUCKETS = 4096
_ROW_GROUP = 1 << 20


@dataclass(frozen=True, kw_only=True)
class PrepareOptions:
    """Which events to keep, and how to write them.

    Attributes:
        min_user_events, min_item_events: users and items with fewer events are dropped, repeatedly until both
            limits hold. A user needs at least 2 events to have a transition.
        max_user_events: maximum number of latest events kept of each user, before rare items and short users
            are dropped; None: all.
        dedup_latest: keep only a user's latest event with each item.
        from_time, until_time: keep only events at or after `from_time` and before `until_time`, in the
            source's unit.
        max_bad_fraction: maximum share of unusable rows.
        num_shards: number of shards; None: chosen by `default_num_shards`.
        seed: seed of the order of users in the shards.
        overwrite: replace an existing dataset at the output path.
        memory_bytes: memory limit. Does not change the result.
        scratch: folder for temporary files; None: the parent of the output.
    """

    min_user_events: int = 2
    min_item_events: int = 1
    max_user_events: int | None = None
    dedup_latest: bool = False
    from_time: int | None = None
    until_time: int | None = None
    max_bad_fraction: float = 0.001
    num_shards: int | None = None
    seed: int = 0
    overwrite: bool = False
    memory_bytes: int = DEFAULT_MEMORY_BYTES
    scratch: Path | None = None

    def __post_init__(self) -> None:
        if self.min_user_events < 2:
            raise DataError(
                f"--min-user-events is {self.min_user_events}, but must be at least 2 (a transition)"
            )
        if self.max_user_events is not None and self.max_user_events < self.min_user_events:
            raise DataError(
                f"--max-user-events is {self.max_user_events}, but must be at least --min-user-events "
                f"{self.min_user_events}"
            )
        if not 0 <= self.max_bad_fraction <= 1:
            raise DataError(f"--max-bad-fraction is {self.max_bad_fraction}, but must lie between 0 and 1")
        for name, least in (("min_item_events", 1), ("num_shards", 1), ("seed", 0)):
            value = getattr(self, name)
            if value is not None and value < least:
                flag = {"num_shards": "shards"}.get(name, name.replace("_", "-"))
                raise DataError(f"--{flag} is {value}, but must be at least {least}")
        if self.from_time is not None and self.until_time is not None and self.from_time >= self.until_time:
            raise DataError(
                f"--from {self.from_time} is not before --until {self.until_time}, so no event is kept; "
                "pass a smaller --from or a larger --until"
            )
        if self.memory_bytes < MIN_MEMORY_BYTES:
            raise DataError(
                f"--memory is {self.memory_bytes} bytes, but must be at least {MIN_MEMORY_BYTES >> 20}MiB"
            )

    def selecting(self) -> dict[str, int | bool | None]:
        """Return the options that decide which events are kept and in which order, for the manifest."""
        names = (
            "min_user_events",
            "min_item_events",
            "max_user_events",
            "dedup_latest",
            "from_time",
            "until_time",
            "seed",
        )
        return {name: getattr(self, name) for name in names}


@dataclass(frozen=True)
class Prepared:
    """A finished dataset: its manifest and the unusable rows of the source."""

    manifest: Manifest
    bad_rows: BadRows


@dataclass(frozen=True)
class WorkPlan:
    """How the work is divided to fit into memory. Does not change the result.

    Attributes:
        num_workers: number of threads.
        block_bytes: text that a thread parses at a time.
        num_buckets: number of parts into which users are divided.
    """

    num_workers: int
    block_bytes: int
    num_buckets: int

    @classmethod
    def make(cls, max_events: int, memory_bytes: int, num_workers: int) -> WorkPlan:
        """Return the plan for at most `max_events` events, with twice the buckets of an even division."""
        per_thread = memory_bytes // num_workers
        block_bytes = min(
            max(per_thread // 2 // _MEMORY_PER_BLOCK_BYTE, _LEAST_BLOCK_BYTES), _MOST_BLOCK_BYTES
        )
        bucket_events = _SHARE_FOR_SORTING * per_thread / SORT_BYTES_PER_EVENT
        num_buckets = min(max(2 * num_workers, int(max_events / bucket_events) + 1), _MOST_BUCKETS)
        return cls(num_workers, block_bytes, num_buckets)


def prepare_dataset(
    source: Source, out: Path, options: PrepareOptions, progress: Progress = no_progress
) -> Prepared:
    """Read `source` and write the dataset folder `out`. If this fails, `out` is unchanged.

    After a kill, a signal or a full disk, the same call resumes. After an error in the source, the temporary
    files are removed.

    Raises:
        DataError: the source or an option is unusable, or `out` exists and may not be replaced.
    """
    check_output(out, overwrite=options.overwrite)
    plan = WorkPlan.make(source.max_events(), options.memory_bytes, default_num_workers())
    key = [source.describe(), source.fingerprint(), str(options), dataclasses.astuple(plan)]
    with work_folder(out, options.scratch, key) as work:
        try:
            prepared = _prepare(source, work, options, plan, progress)
            replace_folder(work.output, out)
        except DataError:
            remove(work)
            raise
        except OSError as error:
            raise DataError(
                f"{error.filename or work.path}: cannot be written ({error.strerror or error}); free "
                f"disk space and repeat the command, which resumes from {work.path}, or delete that folder "
                "and choose another --scratch or --out"
            ) from error
        remove(work)
    return prepared


def _prepare(
    source: Source, work: WorkFolder, options: PrepareOptions, plan: WorkPlan, progress: Progress
) -> Prepared:
    """Run all passes and write the dataset to `work.output`."""
    totals = _read(source, work, options, plan, progress)
    buckets = _sort(work, totals, options, plan, progress)
    selection, time_quantiles = _select(source, work, buckets, options, plan, progress)
    num_users = len(selection.lengths)
    num_shards = options.num_shards or default_num_shards(selection.num_events, num_users)
    if num_shards > num_users:
        raise DataError(
            f"--shards is {num_shards}, more than the {num_users} users; pass at most {num_users}"
        )
    assignment = assign_users(selection.lengths, num_shards, options.seed)
    shards = write_shards(
        work.output, buckets, selection, assignment, num_workers=plan.num_workers, progress=progress
    )
    _write_items(work.output, selection)
    _write_users(work.output, selection, assignment)
    manifest = Manifest(
        dataset_id=dataset_fingerprint(
            selection.item_original_ids, selection.user_original_ids[np.concatenate(assignment)], shards
        ),
        source=source.describe(),
        options=options.selecting(),
        rows_in=totals.rows_in,
        rows_dropped={**totals.bad_rows.counts, **totals.dropped, **buckets.dropped, **selection.dropped},
        num_events=selection.num_events,
        num_users=num_users,
        num_items=len(selection.item_counts),
        time_quantiles=time_quantiles.tolist(),
        shards=tuple(shards),
    )
    manifest.write(work.output)
    return Prepared(manifest, totals.bad_rows)


def _read(
    source: Source, work: WorkFolder, options: PrepareOptions, plan: WorkPlan, progress: Progress
) -> RunTotals:
    """Run the first pass, or read its result."""
    account = work.path / "totals.json"
    if account.exists():
        return RunTotals.from_json(json.loads(account.read_text()))
    run_options = RunOptions(
        block_bytes=plan.block_bytes,
        num_buckets=plan.num_buckets,
        num_workers=plan.num_workers,
        from_time=options.from_time,
        until_time=options.until_time,
        max_bad_fraction=options.max_bad_fraction,
    )
    totals = write_runs(source, work.folder("runs"), run_options, progress)
    totals.bad_rows.check(totals.rows_in, options.max_bad_fraction)
    where = ", ".join(source.describe()["paths"]) or "events"
    if totals.rows_in == totals.bad_rows.counts.get(BLANK_LINE, 0):
        raise DataError(f"{where}: no events, only a header or blank lines; pass a file with events")
    if totals.num_events == 0:
        raise DataError(
            f"{where}: all {totals.rows_in} rows are dropped ({totals.account()}); choose other options"
        )
    write_bytes(account, json.dumps(totals.to_json()).encode(), sync=False)
    return totals


def _sort(
    work: WorkFolder, totals: RunTotals, options: PrepareOptions, plan: WorkPlan, progress: Progress
) -> Buckets:
    """Run the second pass, then delete the runs."""
    bucket_options = BucketOptions(
        num_buckets=plan.num_buckets,
        num_workers=plan.num_workers,
        dedup_latest=options.dedup_latest,
        max_user_events=options.max_user_events,
        memory_bytes=options.memory_bytes // plan.num_workers,
    )
    folder = work.folder("buckets")
    if not work.is_done("sort"):
        sort_buckets(work.folder("runs"), folder, totals, bucket_options, progress)
        work.mark_done("sort")
    shutil.rmtree(work.folder("runs"))
    codes = number_items(folder, totals, bucket_options, progress)
    return Buckets(folder, plan.num_buckets, codes, totals)


def _select(
    source: Source,
    work: WorkFolder,
    buckets: Buckets,
    options: PrepareOptions,
    plan: WorkPlan,
    progress: Progress,
) -> tuple[Selection, np.ndarray]:
    """Run the third pass, or read its result."""
    kept, quantiles = work.path / "selection", work.path / "time-quantiles"
    if kept.exists():
        return Selection.read(kept), ArrayFile(quantiles).read("time")
    try:
        selection, time_quantiles = select(
            buckets,
            min_user_events=options.min_user_events,
            min_item_events=options.min_item_events,
            num_workers=plan.num_workers,
            progress=progress,
        )
    except DataError as error:
        raise DataError(f"{', '.join(source.describe()['paths']) or 'events'}: {error}") from None
    ArrayFile.write(quantiles, {"time": time_quantiles})
    selection.write(kept)
    return selection, time_quantiles


def check_output(out: Path, *, overwrite: bool) -> None:
    """Check that a dataset may be written to `out`.

    Raises:
        DataError: `out` exists and is not a dataset, or `overwrite` is off.
    """
    if not out.exists() or (out.is_dir() and not any(out.iterdir())):
        return
    if not is_dataset(out):
        raise DataError(
            f"{out}: exists and is not a prepared dataset; choose another --out (--overwrite replaces only "
            "datasets)"
        )
    if not overwrite:
        raise DataError(
            f"{out}: already contains a dataset; pass --overwrite to replace it, or choose another --out"
        )


def _write_items(folder: Path, selection: Selection) -> None:
    columns = {
        "item_id": np.arange(1, len(selection.item_counts) + 1, dtype=np.int64),
        "original_id": selection.item_original_ids,
        "count": selection.item_counts,
    }
    _write_table(folder / ITEMS_NAME, columns)


def _write_users(folder: Path, selection: Selection, assignment: list[np.ndarray]) -> None:
    users = np.concatenate(assignment)
    sizes = [len(shard) for shard in assignment]
    columns = {
        "user_index": np.arange(len(users), dtype=np.int64),
        "original_id": selection.user_original_ids[users],
        "num_events": selection.lengths[users],
        "shard": np.repeat(np.arange(len(sizes), dtype=np.int64), sizes),
        "position": np.concatenate([np.arange(size, dtype=np.int64) for size in sizes]),
    }
    _write_table(folder / USERS_NAME, columns)


def _write_table(path: Path, columns: dict[str, np.ndarray]) -> None:
    """Write int64 columns, a million rows at a time."""
    schema = pa.schema([(name, pa.int64()) for name in columns])
    with pq.ParquetWriter(path, schema, compression="zstd") as writer:
        for begin in range(0, len(next(iter(columns.values()))), _ROW_GROUP):
            part = {name: values[begin : begin + _ROW_GROUP] for name, values in columns.items()}
            writer.write_table(pa.table(part, schema=schema))
