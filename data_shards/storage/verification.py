"""Check every checksum and count of a prepared dataset against its content.

Shards are read by `plain_reader`, which makes this a check that is independent of the writer and the reader.
"""

from __future__ import annotations

import tarfile
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import polars as pl
import pyarrow as pa
import pyarrow.parquet as pq

from longplay.common.checksums import sha256_of
from longplay.data_shards.errors import DataError
from longplay.data_shards.progress import Track, untracked
from longplay.data_shards.storage.feature_verification import FeatureCheck, read_vocabularies
from longplay.data_shards.storage.item_columns import ITEM_COLUMNS
from longplay.data_shards.storage.manifest import (
    ITEMS_NAME,
    MANIFEST_NAME,
    USERS_NAME,
    Manifest,
    ShardInfo,
    dataset_fingerprint,
)
from longplay.data_shards.storage.parquet_tables import read_table
from longplay.data_shards.storage.plain_reader import read_arrays

_USERS_COLUMNS = ("user_index", "original_id", "num_events", "shard", "position")


def find_problems(folder: Path | str, track: Track = untracked) -> list[str]:
    """Read a whole dataset folder and return one line for each problem.

    Args:
        folder: the dataset.
        track: reports progress.

    Raises:
        DataError: `folder` does not exist or contains no manifest.
    """
    folder = Path(folder)
    try:
        manifest = Manifest.read(folder)
    except DataError as error:
        if not (folder / MANIFEST_NAME).exists():
            raise
        return [str(error)]
    problems: list[str] = []
    users = _table(folder / USERS_NAME, _USERS_COLUMNS, manifest.num_users, problems)
    items = _table(folder / ITEMS_NAME, ITEM_COLUMNS, manifest.num_items, problems)
    if users is not None:
        problems += _check_users(users, manifest)
    if items is not None:
        problems += _check_items(items, manifest)
        problems += _check_item_columns(folder / ITEMS_NAME)
    if users is not None and items is not None:
        problems += _check_fingerprint(users, items, folder, manifest)
    return problems + _check_shards(folder, manifest, users, items, track)


def _table(path: Path, columns: tuple[str, ...], height: int, problems: list[str]) -> pl.DataFrame | None:
    """Read a table. If it cannot be checked, append to `problems` and return None."""
    try:
        table = read_table(path, columns)
    except FileNotFoundError:
        problems.append(f"{path.name}: is missing")
        return None
    except (OSError, pl.exceptions.PolarsError) as error:
        problems.append(f"{path.name}: cannot be read ({str(error).splitlines()[0]})")
        return None
    types = {name: (pl.Int64, pl.String) if name == "original_id" else (pl.Int64,) for name in columns}
    unusable = [name for name in columns if table[name].dtype not in types[name] or table[name].null_count()]
    if unusable:
        expected = " or ".join(str(dtype) for dtype in types[unusable[0]])
        problems.append(f"{path.name}: column {unusable[0]} is not {expected} or contains nulls")
    elif table.height != height:
        problems.append(f"{path.name}: has {table.height} rows, expected {height}")
    return None if unusable or table.height != height else table


def _check_users(users: pl.DataFrame, manifest: Manifest) -> Iterator[str]:
    sizes = [shard.num_users for shard in manifest.shards]
    expected = {
        "user_index": np.arange(users.height),
        "shard": np.repeat(np.arange(len(sizes)), sizes),
        "position": np.concatenate([np.arange(size) for size in sizes]),
    }
    for column, values in expected.items():
        yield from _compare(f"{USERS_NAME}: {column} of row", users[column].to_numpy(), values)
    if users["original_id"].n_unique() != users.height:
        yield f"{USERS_NAME}: an original_id occurs twice"


def _check_items(items: pl.DataFrame, manifest: Manifest) -> Iterator[str]:
    ids, counts = items["item_id"].to_numpy(), items["count"].to_numpy()
    yield from _compare(f"{ITEMS_NAME}: item_id of row", ids, np.arange(1, len(ids) + 1))
    if counts.sum() != manifest.num_events:
        yield f"{ITEMS_NAME}: counts add up to {counts.sum()}, expected {manifest.num_events}"
    if (np.diff(counts) > 0).any():
        yield f"{ITEMS_NAME}: counts are not descending at row {int(np.argmax(np.diff(counts) > 0)) + 1}"
    if items["original_id"].n_unique() != items.height:
        yield f"{ITEMS_NAME}: an original_id occurs twice"


def _check_item_columns(path: Path) -> Iterator[str]:
    """Read the additional columns, a part at a time."""
    try:
        with pq.ParquetFile(path.absolute()) as file:
            names = [name for name in file.schema_arrow.names if name not in ITEM_COLUMNS]
            for batch in file.iter_batches(1 << 16, columns=names) if names else ():
                batch.validate(full=True)
    except (OSError, pa.ArrowException) as error:
        yield f"{path.name}: cannot be read ({str(error).splitlines()[0]})"


def _check_fingerprint(
    users: pl.DataFrame, items: pl.DataFrame, folder: Path, manifest: Manifest
) -> Iterator[str]:
    """Check the dataset id: a hash of the original ids, the shards' checksums and the features' values."""
    item_originals, user_originals = (table["original_id"] for table in (items, users))
    vocabularies = read_vocabularies(folder, manifest.features)
    if vocabularies is None:
        return  # reported for the feature
    found = dataset_fingerprint(item_originals, user_originals, manifest.shards, vocabularies)
    if found != manifest.dataset_id:
        yield (
            f"{MANIFEST_NAME}: dataset_id is {manifest.dataset_id}, but the original ids in {ITEMS_NAME} and "
            f"{USERS_NAME} and the shards' checksums give {found}"
        )


def _check_shards(
    folder: Path, manifest: Manifest, users: pl.DataFrame | None, items: pl.DataFrame | None, track: Track
) -> list[str]:
    problems: list[str] = []
    totals = _Totals(
        np.zeros(manifest.num_items + 1, np.int64), [FeatureCheck(feature) for feature in manifest.features]
    )
    first_users = np.cumsum([0, *(shard.num_users for shard in manifest.shards)])
    for number in track(range(len(manifest.shards)), "verifying shards"):
        info, begin, end = manifest.shards[number], first_users[number], first_users[number + 1]
        lengths = None if users is None else users["num_events"].to_numpy()[begin:end]
        found = _check_shard(folder / info.name, info, int(begin), lengths, totals)
        problems += [f"{info.name}: {problem}" for problem in found]
    missing = len(manifest.shards) - totals.num_shards
    if missing:
        problems.append(
            f"{ITEMS_NAME}: counts were not compared with the events, because {missing} shards are unusable"
        )
        return problems
    if items is not None:
        counts = items["count"].to_numpy()
        problems += _compare(f"{ITEMS_NAME}: count of row", counts, totals.counts[1:], "but the shards have")
    for feature in totals.features:
        problems += feature.problems(folder)
    first, last = manifest.time_quantiles[0], manifest.time_quantiles[-1]
    if (first, last) != (totals.first_time, totals.last_time):
        problems.append(
            f"{MANIFEST_NAME}: time_quantiles range from {first} to {last}, but the event times from "
            f"{totals.first_time} to {totals.last_time}"
        )
    return problems


@dataclass
class _Totals:
    """Totals over the usable shards.

    Attributes:
        counts: (items + 1,) int64 number of events of each item id.
        features: totals of each feature.
        num_shards: number of usable shards.
        first_time, last_time: range of the event times.
    """

    counts: np.ndarray
    features: list[FeatureCheck] = field(default_factory=list)
    num_shards: int = 0
    first_time: int = np.iinfo(np.int64).max
    last_time: int = np.iinfo(np.int64).min


def _check_shard(
    path: Path, info: ShardInfo, first_user: int, lengths: np.ndarray | None, totals: _Totals
) -> Iterator[str]:
    """Read a shard twice, for its checksum and for its arrays. Add it to `totals` if it is usable.

    Args:
        path: the shard.
        info: its entry in the manifest.
        first_user: index of its first user.
        lengths: (users,) number of events of each user in users.parquet; None if that file is unusable.
        totals: totals over the usable shards; updated.
    """
    try:
        num_bytes = path.stat().st_size
        sha256 = sha256_of(path)
    except FileNotFoundError:
        yield "is missing"
        return
    except OSError as error:
        yield f"cannot be read ({error.strerror})"
        return
    if num_bytes != info.num_bytes:
        yield f"has {num_bytes} bytes, expected {info.num_bytes}"
    elif sha256 != info.sha256:
        yield "content does not match its checksum in the manifest"
    try:
        names = [check.info.name for check in totals.features]
        found, items, times, features = read_arrays(path, first_user, names)
    except (OSError, ValueError, EOFError, tarfile.TarError) as error:
        yield f"is damaged ({(str(error) or type(error).__name__).splitlines()[0]})"
        return
    if len(found) != info.num_users:
        yield f"has {len(found)} users, expected {info.num_users}"
    elif lengths is not None:
        yield from _compare("number of events of user", found, lengths, f"but {USERS_NAME} has", first_user)
    if found.sum() != info.num_events:
        yield f"has {found.sum()} events, expected {info.num_events}"
    for check, values in zip(totals.features, features, strict=True):
        problem = check.add(values)
        if problem is not None:
            yield problem
    if found.any():
        yield from _check_events(items, times, found, first_user, totals)


def _check_events(
    items: np.ndarray, times: np.ndarray, lengths: np.ndarray, first_user: int, totals: _Totals
) -> Iterator[str]:
    """Check the events of one shard and add them to `totals`.

    Args:
        items, times: (events,) the concatenated sequences.
        lengths: (users,) number of events of each user.
        first_user: index of the first user.
        totals: totals over the usable shards; updated.
    """
    ends = np.cumsum(lengths)
    decreases = times[1:] < times[:-1]  # a difference could overflow
    inner = ends[(ends > 0) & (ends < len(times))]
    decreases[inner - 1] = False
    if decreases.any():
        user = first_user + int(np.searchsorted(ends, np.argmax(decreases), side="right"))
        yield f"times decrease within a user at {np.count_nonzero(decreases)} events, first in user {user}"
    num_items = len(totals.counts) - 1
    outside = (items < 1) | (items > num_items)
    if outside.any():
        first = items[np.argmax(outside)]
        yield f"{np.count_nonzero(outside)} item ids are outside 1..{num_items}, first {first}"
        return
    ids, counts = np.unique_counts(items)
    totals.counts[ids] += counts
    totals.first_time = min(totals.first_time, int(times.min()))
    totals.last_time = max(totals.last_time, int(times.max()))
    totals.num_shards += 1


def _compare(
    name: str, found: np.ndarray, expected: np.ndarray, claim: str = "expected", first: int = 0
) -> Iterator[str]:
    """Yield one line that names the first difference and counts the others.

    Args:
        name: what the values are.
        found, expected: (N,) values to compare.
        claim: words before the expected value.
        first: number of the first value.
    """
    different = np.flatnonzero(found != expected)
    if len(different):
        at = different[0]
        more = f" (and {len(different) - 1} more differ)" if len(different) > 1 else ""
        yield f"{name} {first + at} is {found[at]}, {claim} {expected[at]}{more}"
