"""Turn a source into a prepared dataset folder: out of core, resumable and atomic.

Four passes: parse the blocks of the source and partition their events by user (`partition`), sort each bucket
of users (`buckets`), select users and items and number the items (`selection`), write the shards (`writing`).
When the same command is repeated after an interruption, finished work is reused.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import duckdb
import numpy as np
import polars as pl

from longplay.common.atomic import replace_folder
from longplay.data_shards.errors import DataError
from longplay.data_shards.preparation.buckets import Buckets
from longplay.data_shards.preparation.features import Vocabulary, count_values, float_info
from longplay.data_shards.preparation.item_columns import join_item_columns
from longplay.data_shards.preparation.job import Job
from longplay.data_shards.preparation.names import Names, originals
from longplay.data_shards.preparation.options import PrepareOptions, WorkPlan
from longplay.data_shards.preparation.partition import RunTotals
from longplay.data_shards.preparation.passes import read_events, select_events, sort_events
from longplay.data_shards.preparation.selection import Selection
from longplay.data_shards.preparation.shares import WHOLE, Share
from longplay.data_shards.preparation.tables import write_items, write_users, write_vocabulary
from longplay.data_shards.preparation.work_folder import WorkFolder, remove, work_folder
from longplay.data_shards.preparation.workers import default_num_workers
from longplay.data_shards.preparation.writing import (
    assign_users,
    default_num_shards,
    remove_accounts,
    write_shards,
)
from longplay.data_shards.progress import Progress, no_progress
from longplay.data_shards.readers.bad_rows import BadRows
from longplay.data_shards.readers.inputs import file_identity
from longplay.data_shards.readers.sources import Source
from longplay.data_shards.storage.features import FeatureInfo
from longplay.data_shards.storage.id_column import IdColumn
from longplay.data_shards.storage.manifest import Manifest, ShardInfo, dataset_fingerprint, is_dataset

SCRATCH_BYTES_PER_EVENT = 18
"""Peak disk use in bytes per event, including the dataset, if ids and times span less than 2**32."""


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
    """Read `source` and write the dataset folder `out`. On failure, `out` is unchanged.

    After a kill, a signal or a full disk, the same call resumes. After a `DataError` about the source or an
    option, the temporary files are removed.

    Raises:
        DataError: the source or an option is unusable, or `out` exists and may not be replaced.
    """
    check_output(out, overwrite=options.overwrite)
    plan = WorkPlan.make(source.max_events(), options.memory_bytes, default_num_workers())
    key = job_key(source, options, plan)
    with work_folder(out, options.scratch, key) as work:
        return complete(Job(source, work, options, plan, progress), out)


def job_key(source: Source, options: PrepareOptions, plan: WorkPlan) -> list[Any]:
    """Return plain data that differs for two jobs that cannot use each other's intermediate files."""
    libraries = [duckdb.__version__, pl.__version__]  # hashes of strings depend on them
    tables = [] if options.item_table is None else [file_identity(options.item_table)]
    described, files = source.describe(), source.fingerprint()
    return [tables, described, files, str(options), dataclasses.astuple(plan), libraries]


def complete(job: Job, out: Path) -> Prepared:
    """Run what remains of all passes, rename the dataset to `out` and delete the temporary files.

    Raises:
        DataError: see `prepare_dataset`.
    """
    with disk_errors(job.work):
        try:
            prepared = _prepare(job)
            replace_folder(job.work.output, out)
        except DataError:
            remove(job.work)
            raise
    remove(job.work)
    return prepared


@contextmanager
def disk_errors(work: WorkFolder) -> Iterator[None]:
    """Turn an error while intermediate files are written into one line.

    Raises:
        DataError: a file cannot be written.
    """
    try:
        yield
    except (OSError, duckdb.Error, pl.exceptions.PolarsError) as error:
        apart = work.path.parent != work.partial.parent
        folders = f"{work.path} or {work.partial}" if apart else work.path
        place = (isinstance(error, OSError) and error.filename) or folders
        cause = (isinstance(error, OSError) and error.strerror) or str(error).strip().splitlines()[0]
        cause = cause.partition("IO error: ")[2] or cause  # of Polars
        raise DataError(
            f"{place}: cannot be written ({cause}); free disk space and repeat the command, which "
            f"resumes from {work.path}, or delete that folder and choose another --scratch or --out"
        ) from error


@dataclass(frozen=True)
class Layout:
    """The result of the first three passes: what each shard holds.

    Attributes:
        totals: of the first pass.
        names: of each column of strings.
        buckets: the sorted events.
        selection: the users and items that are kept.
        time_quantiles: of the kept events.
        assignment: the users of each shard.
        vocabularies: the values of each categorical feature.
    """

    totals: RunTotals
    names: dict[str, Names]
    buckets: Buckets
    selection: Selection
    time_quantiles: np.ndarray
    assignment: list[np.ndarray]
    vocabularies: dict[str, Vocabulary]


def lay_out(job: Job) -> Layout:
    """Run the first three passes, or read their results, and assign the users to shards.

    Raises:
        DataError: the source or an option is unusable.
    """
    totals, names = read_events(job)
    buckets = sort_events(job, totals, names)
    selection, time_quantiles = select_events(job, buckets, names.get("user"))
    num_users = len(selection.lengths)
    num_shards = job.options.num_shards or default_num_shards(selection.num_events, num_users)
    if num_shards > num_users:
        raise DataError(
            f"--shards is {num_shards}, more than the {num_users} users; pass at most {num_users}"
        )
    vocabularies = {
        name: count_values(name, buckets, selection, names.get(name), job.plan.num_workers)
        for name, kind in job.source.features()
        if kind == "categorical"
    }
    assignment = assign_users(selection.lengths, num_shards, job.options.seed)
    return Layout(totals, names, buckets, selection, time_quantiles, assignment, vocabularies)


def write_share_of_shards(
    job: Job, layout: Layout, share: Share = WHOLE
) -> tuple[list[ShardInfo], dict[str, list[dict[str, Any]]]]:
    """Run a share of the fourth pass. Return the result of `write_shards`."""
    return write_shards(
        job.work.output,
        layout.buckets,
        layout.selection,
        layout.assignment,
        vocabularies=layout.vocabularies,
        floats=[name for name, kind in job.source.features() if kind == "float"],
        num_workers=job.plan.num_workers,
        share=share,
        progress=job.progress,
    )


def _prepare(job: Job) -> Prepared:
    """Run all passes and write the dataset to `work.output`."""
    layout = lay_out(job)
    shards, measured = write_share_of_shards(job, layout)
    output, names, selection = job.work.output, layout.names, layout.selection
    vocabularies = layout.vocabularies
    items = originals(names.get("item"), selection.item_original_ids)
    users = originals(names.get("user"), selection.user_original_ids[np.concatenate(layout.assignment)])
    num_unnamed = _write_items(job.work, selection, items, job.options)
    write_users(output, selection, layout.assignment, users)
    for name, vocabulary in vocabularies.items():
        write_vocabulary(output, name, vocabulary.values, vocabulary.counts)
    values = {name: pl.Series(vocabulary.values).to_list() for name, vocabulary in vocabularies.items()}
    totals = layout.totals
    dropped = {**totals.bad_rows.counts, **totals.dropped, **layout.buckets.dropped, **selection.dropped}
    manifest = Manifest(
        dataset_id=dataset_fingerprint(items, users, shards, values),
        source=job.source.describe(),
        options=job.options.selecting(),
        rows_in=totals.rows_in,
        rows_dropped=dropped,
        num_events=selection.num_events,
        num_users=len(selection.lengths),
        num_items=len(selection.item_counts),
        time_quantiles=layout.time_quantiles.tolist(),
        shards=tuple(shards),
        features=tuple(_feature_info(name, vocabularies, measured) for name, _ in job.source.features()),
        time_unit=job.source.time_unit(),
    )
    manifest.write(output)
    remove_accounts(output)
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


def check_output(out: Path, *, overwrite: bool) -> None:
    """Check that a dataset may be written to `out`.

    Raises:
        DataError: `out` exists and is not a dataset, or `overwrite` is off; or it has no name, such as `.`.
    """
    if out.name in ("", ".."):  # the dataset is renamed to it, which a folder in use does not allow
        raise DataError(
            f"--out {out}: is not the name of a new folder; choose one, such as {out / 'dataset'}"
        )
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
