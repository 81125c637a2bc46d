"""Turn a source into a prepared dataset folder: out of core, resumable and atomic.

Four passes: parse the blocks of the source and partition their events by user (`partition`), sort each bucket
of users (`buckets`), select users and items and number the items (`selection`), write the shards (`writing`).
When the same command is repeated after an interruption, finished work is reused.
"""

from __future__ import annotations

import dataclasses
import json
import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import duckdb
import numpy as np
import polars as pl

from longplay.common.atomic import replace_folder, write_bytes
from longplay.data_shards.errors import DataError
from longplay.data_shards.preparation.array_file import ArrayFile
from longplay.data_shards.preparation.buckets import BucketOptions, Buckets, number_items, sort_buckets
from longplay.data_shards.preparation.features import Vocabulary, count_values, float_info
from longplay.data_shards.preparation.item_columns import join_item_columns
from longplay.data_shards.preparation.names import CollisionError, Names, merge_names, originals
from longplay.data_shards.preparation.options import PrepareOptions, WorkPlan
from longplay.data_shards.preparation.partition import RunOptions, RunTotals, write_runs
from longplay.data_shards.preparation.selection import Selection, select
from longplay.data_shards.preparation.tables import write_items, write_users, write_vocabulary
from longplay.data_shards.preparation.work_folder import WorkFolder, remove, work_folder
from longplay.data_shards.preparation.workers import default_num_workers
from longplay.data_shards.preparation.writing import assign_users, default_num_shards, write_shards
from longplay.data_shards.progress import Progress, no_progress
from longplay.data_shards.readers.bad_rows import BLANK_LINE, BadRows
from longplay.data_shards.readers.inputs import file_identity
from longplay.data_shards.readers.sources import Source
from longplay.data_shards.storage.features import FeatureInfo
from longplay.data_shards.storage.id_column import IdColumn
from longplay.data_shards.storage.manifest import Manifest, dataset_fingerprint, is_dataset

SCRATCH_BYTES_PER_EVENT = 18
"""Peak disk use, including the dataset, if ids and times span less than 2**32."""


@dataclass(frozen=True)
class Prepared:
    """A finished dataset.

    Attributes:
        manifest: its manifest.
        bad_rows: the unusable rows of the source.
        num_unnamed: items without a row in the item table.
    """

    manifest: Manifest
    bad_rows: BadRows
    num_unnamed: int = 0


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
    libraries = [duckdb.__version__, pl.__version__]  # hashes of strings depend on them
    tables = [] if options.item_table is None else [file_identity(options.item_table)]
    key = [
        tables,
        source.describe(),
        source.fingerprint(),
        str(options),
        dataclasses.astuple(plan),
        libraries,
    ]
    with work_folder(out, options.scratch, key) as work:
        try:
            prepared = _prepare(source, work, options, plan, progress)
            replace_folder(work.output, out)
        except DataError:
            remove(work)
            raise
        except (OSError, duckdb.Error) as error:
            place = (isinstance(error, OSError) and error.filename) or work.path
            cause = (isinstance(error, OSError) and error.strerror) or str(error).strip().splitlines()[0]
            raise DataError(
                f"{place}: cannot be written ({cause}); free disk space and repeat the command, which "
                f"resumes from {work.path}, or delete that folder and choose another --scratch or --out"
            ) from error
        remove(work)
    return prepared


def _prepare(
    source: Source, work: WorkFolder, options: PrepareOptions, plan: WorkPlan, progress: Progress
) -> Prepared:
    """Run all passes and write the dataset to `work.output`."""
    totals, names = _read(source, work, options, plan, progress)
    features = dict(source.features())
    buckets = _sort(work, totals, names, tuple(features), options, plan, progress)
    selection, time_quantiles = _select(source, work, buckets, names.get("user"), options, plan, progress)
    num_users = len(selection.lengths)
    num_shards = options.num_shards or default_num_shards(selection.num_events, num_users)
    if num_shards > num_users:
        raise DataError(
            f"--shards is {num_shards}, more than the {num_users} users; pass at most {num_users}"
        )
    assignment = assign_users(selection.lengths, num_shards, options.seed)
    vocabularies = {
        name: count_values(name, buckets, selection, names.get(name), plan.num_workers)
        for name, kind in features.items()
        if kind == "categorical"
    }
    shards, measured = write_shards(
        work.output,
        buckets,
        selection,
        assignment,
        vocabularies=vocabularies,
        floats=[name for name, kind in features.items() if kind == "float"],
        num_workers=plan.num_workers,
        progress=progress,
    )
    items = originals(names.get("item"), selection.item_original_ids)
    users = originals(names.get("user"), selection.user_original_ids[np.concatenate(assignment)])
    num_unnamed = _write_items(work, selection, items, options)
    write_users(work.output, selection, assignment, users)
    for name, vocabulary in vocabularies.items():
        write_vocabulary(work.output, name, vocabulary.values, vocabulary.counts)
    values = {name: pl.Series(vocabulary.values).to_list() for name, vocabulary in vocabularies.items()}
    manifest = Manifest(
        dataset_id=dataset_fingerprint(items, users, shards, values),
        source=source.describe(),
        options=options.selecting(),
        rows_in=totals.rows_in,
        rows_dropped={**totals.bad_rows.counts, **totals.dropped, **buckets.dropped, **selection.dropped},
        num_events=selection.num_events,
        num_users=num_users,
        num_items=len(selection.item_counts),
        time_quantiles=time_quantiles.tolist(),
        shards=tuple(shards),
        features=tuple(_feature_info(name, vocabularies, measured) for name in features),
        time_unit=source.time_unit(),
    )
    manifest.write(work.output)
    return Prepared(manifest, totals.bad_rows, num_unnamed)


def _write_items(
    work: WorkFolder,
    selection: Selection,
    items: np.ndarray | pl.Series,
    options: PrepareOptions,
) -> int:
    """Write the table of items. Return the number of items without a row in the item table."""
    if options.item_table is None or options.item_table_id is None:
        write_items(work.output, selection, items)
        return 0
    with join_item_columns(
        IdColumn(items),
        options.item_table,
        item=options.item_table_id,
        memory_bytes=options.memory_bytes // 2,
        scratch=work.folder("items"),
    ) as joined:
        write_items(work.output, selection, items, joined)
        return joined.num_missing


def _feature_info(
    name: str, vocabularies: Mapping[str, Vocabulary], measured: Mapping[str, list[dict]]
) -> FeatureInfo:
    if name in vocabularies:
        return FeatureInfo(name=name, kind="categorical", num_values=len(vocabularies[name].counts))
    return float_info(name, measured[name])


def _read(
    source: Source, work: WorkFolder, options: PrepareOptions, plan: WorkPlan, progress: Progress
) -> tuple[RunTotals, dict[str, Names]]:
    """Run the first pass, or read its result. Return the totals, and the names of each column of strings."""
    account, names = work.path / "totals.json", work.path / "names"
    if account.exists():
        totals = RunTotals.from_json(json.loads(account.read_text()))
    else:
        totals = _write_runs(source, work, options, plan, progress)
        write_bytes(account, json.dumps(totals.to_json()).encode(), sync=False)
    return totals, {role: Names.read(names / f"names-{role}.parquet") for role in totals.named}


def _write_runs(
    source: Source, work: WorkFolder, options: PrepareOptions, plan: WorkPlan, progress: Progress
) -> RunTotals:
    """Partition the events. If two strings have one hash, repeat with another seed of the hash."""
    seed = sum(1 for _ in work.path.glob("seed-*.failed"))
    run_options = RunOptions(
        block_bytes=plan.block_bytes,
        num_buckets=plan.num_buckets,
        num_workers=plan.num_workers,
        from_time=options.from_time,
        until_time=options.until_time,
        max_bad_fraction=options.max_bad_fraction,
        by_row=source.time_unit() == "index",
        seed=seed,
    )
    runs = work.folder("runs")
    before = source.fingerprint()
    totals = write_runs(source, runs, run_options, progress)
    if (after := source.fingerprint()) != before:
        raise DataError(_change(before, after))
    totals.bad_rows.check(totals.rows_in, options.max_bad_fraction)
    where = ", ".join(source.describe()["paths"]) or "events"
    if totals.rows_in == totals.bad_rows.counts.get(BLANK_LINE, 0):
        raise DataError(f"{where}: no events, only a header or blank lines; pass a file with events")
    if totals.num_events == 0:
        raise DataError(
            f"{where}: all {totals.rows_in} rows are dropped ({totals.account()}); choose other options"
        )
    try:
        for role in totals.named:
            merge_names(runs, work.folder("names"), role, options.memory_bytes // 2)
    except CollisionError:
        (work.path / f"seed-{seed}.failed").touch()
        shutil.rmtree(runs)
        return _write_runs(source, work, options, plan, progress)
    return totals


def _change(before: list[Any], after: list[Any]) -> str:
    """Return the message about a source whose fingerprint has changed."""
    changed = next((one for one, other in zip(before, after, strict=False) if one != other), None)
    name = changed[0] if isinstance(changed, list) and changed else "the input"
    return f"{name}: changed while it was read; wait until it is complete, then repeat the command"


def _sort(
    work: WorkFolder,
    totals: RunTotals,
    names: Mapping[str, Names],
    features: tuple[str, ...],
    options: PrepareOptions,
    plan: WorkPlan,
    progress: Progress,
) -> Buckets:
    """Run the second pass, then delete the runs."""
    bucket_options = BucketOptions(
        num_buckets=plan.num_buckets,
        num_workers=plan.num_workers,
        dedup_latest=options.dedup_latest,
        max_user_events=options.max_user_events,
        memory_bytes=options.memory_bytes // plan.num_workers,
        features=features,
    )
    folder = work.folder("buckets")
    if not work.is_done("sort"):
        sort_buckets(work.folder("runs"), folder, totals, bucket_options, progress)
        work.mark_done("sort")
    shutil.rmtree(work.folder("runs"))
    codes = number_items(folder, totals, bucket_options, names.get("item"), progress)
    return Buckets(folder, plan.num_buckets, codes, totals)


def _select(
    source: Source,
    work: WorkFolder,
    buckets: Buckets,
    user_names: Names | None,
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
            user_names=user_names,
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
