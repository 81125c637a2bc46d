"""Source -> prepared dataset folder, whole or not at all."""

from __future__ import annotations

import hashlib
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import polars as pl

from longplay.data_shards.bad_rows import BadRows
from longplay.data_shards.errors import DataError
from longplay.data_shards.manifest import (
    ITEMS_NAME,
    NUM_QUANTILES,
    USERS_NAME,
    Manifest,
    ShardInfo,
    is_dataset,
)
from longplay.data_shards.sequences import Sequences, build_sequences
from longplay.data_shards.shard_writer import assign_users, default_num_shards, write_shards
from longplay.data_shards.sources import Progress, Source, no_progress


@dataclass(frozen=True, kw_only=True)
class PrepareOptions:
    """What to keep and how to lay it out.

    Attributes:
        min_user_events: users with fewer are dropped; one event holds no transition.
        max_bad_fraction: share of unusable rows above which the run stops.
        num_shards: None for a default by size, see `default_num_shards`.
        seed: draws the order of the users in the shards.
        overwrite: replace the dataset that is at the output path.
    """

    min_user_events: int = 2
    max_bad_fraction: float = 0.001
    num_shards: int | None = None
    seed: int = 0
    overwrite: bool = False

    def __post_init__(self) -> None:
        if self.min_user_events < 2:
            raise DataError(
                f"--min-user-events is {self.min_user_events}, it must be at least 2 (a transition)"
            )
        if not 0 <= self.max_bad_fraction <= 1:
            raise DataError(f"--max-bad-fraction is {self.max_bad_fraction}, it must lie between 0 and 1")
        if self.num_shards is not None and self.num_shards < 1:
            raise DataError(f"--shards is {self.num_shards}, it must be at least 1")
        if self.seed < 0:
            raise DataError(f"--seed is {self.seed}, it must not be negative")


@dataclass(frozen=True)
class Prepared:
    """A finished dataset: its manifest, and the rows of the source that were unusable."""

    manifest: Manifest
    bad_rows: BadRows


def prepare_dataset(
    source: Source, out: Path, options: PrepareOptions, progress: Progress = no_progress
) -> Prepared:
    """Reads `source` and writes the dataset folder `out`; on any failure `out` is as it was before.

    Raises:
        DataError: unusable source or options, or `out` is taken.
    """
    check_output(out, overwrite=options.overwrite)
    raw = source.read(progress)
    raw.bad_rows.check(raw.rows_in, options.max_bad_fraction)
    try:
        sequences, too_short = build_sequences(raw.frame, options.min_user_events)
    except DataError as error:
        raise DataError(f"{', '.join(source.describe()['paths']) or 'events'}: {error}") from None
    num_users, num_events = len(sequences.lengths), len(sequences.items)
    num_shards = options.num_shards or default_num_shards(num_events, num_users)
    if num_shards > num_users:
        raise DataError(
            f"--shards is {num_shards}, more than the {num_users} users; pass at most {num_users}"
        )
    assignment = assign_users(sequences.lengths, num_shards, options.seed)
    with _whole_or_nothing(out) as folder:
        shards = write_shards(folder, sequences, assignment, progress)
        _write_items(folder, sequences)
        _write_users(folder, sequences, assignment)
        manifest = Manifest(
            dataset_id=_fingerprint(sequences, assignment, shards),
            source=source.describe(),
            rows_in=raw.rows_in,
            rows_dropped={**raw.bad_rows.counts, **too_short},
            num_events=num_events,
            num_users=num_users,
            num_items=len(sequences.item_counts),
            time_quantiles=_time_quantiles(sequences.times),
            shards=tuple(shards),
        )
        manifest.write(folder)
    return Prepared(manifest, raw.bad_rows)


def check_output(out: Path, *, overwrite: bool) -> None:
    """Whether a dataset may be written to `out`.

    Raises:
        DataError: something is there that must not, or may not yet, be replaced.
    """
    if not out.exists() or (out.is_dir() and not any(out.iterdir())):
        return
    if not is_dataset(out):
        raise DataError(
            f"{out}: exists and is no prepared dataset; choose another --out (--overwrite only replaces one)"
        )
    if not overwrite:
        raise DataError(
            f"{out}: a dataset is there already; pass --overwrite to replace it, or choose another --out"
        )


@contextmanager
def _whole_or_nothing(out: Path) -> Iterator[Path]:
    """A folder beside `out` to write into, moved to `out` when all went well, removed when not."""
    partial = out.with_name(f"{out.name}.partial-{os.getpid()}")
    replaced = out.with_name(f"{out.name}.replaced-{os.getpid()}")
    try:
        partial.mkdir(parents=True)
    except OSError as error:
        raise DataError(f"{out}: cannot be created ({error.strerror}); choose another --out") from error
    try:
        yield partial
        if out.exists():
            out.rename(replaced)
        try:
            partial.rename(out)
        except BaseException:
            if replaced.exists():
                replaced.rename(out)
            raise
    except OSError as error:
        raise DataError(
            f"{out}: cannot be written ({error.strerror}); make room or choose another --out"
        ) from error
    finally:
        shutil.rmtree(partial, ignore_errors=True)
        shutil.rmtree(replaced, ignore_errors=True)


def _write_items(folder: Path, sequences: Sequences) -> None:
    num_items = len(sequences.item_counts)
    columns = {
        "item_id": np.arange(1, num_items + 1, dtype=np.int64),
        "original_id": sequences.item_original_ids,
        "count": sequences.item_counts,
    }
    pl.DataFrame(columns).write_parquet(folder / ITEMS_NAME)


def _write_users(folder: Path, sequences: Sequences, assignment: list[np.ndarray]) -> None:
    users = np.concatenate(assignment)
    sizes = [len(shard) for shard in assignment]
    columns = {
        "user_index": np.arange(len(users), dtype=np.int64),
        "original_id": sequences.user_original_ids[users],
        "num_events": sequences.lengths[users],
        "shard": np.repeat(np.arange(len(sizes), dtype=np.int64), sizes),
        "position": np.concatenate([np.arange(size, dtype=np.int64) for size in sizes]),
    }
    pl.DataFrame(columns).write_parquet(folder / USERS_NAME)


def _fingerprint(sequences: Sequences, assignment: list[np.ndarray], shards: list[ShardInfo]) -> str:
    """A hex digest of both id mappings and of all shards."""
    digest = hashlib.sha256()
    for ids in (sequences.item_original_ids, sequences.user_original_ids[np.concatenate(assignment)]):
        digest.update(ids.astype("<i8").tobytes())
    for shard in shards:
        digest.update(f"{shard.name}:{shard.sha256}\n".encode())
    return digest.hexdigest()[:32]


def _time_quantiles(times: np.ndarray) -> list[int]:
    """The exact times at ranks i/1000 of all events, i = 0..1000, lower of two neighbours."""
    ranks = np.arange(NUM_QUANTILES + 1) * (len(times) - 1) // NUM_QUANTILES
    return np.partition(times, np.unique(ranks))[ranks].tolist()
