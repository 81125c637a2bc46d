"""Write sequences to tar shards that WebDataset can read. Equal input gives equal bytes."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import MappingProxyType
from typing import Any

import numpy as np

from longplay.common.atomic import write_bytes
from longplay.data_shards.preparation.buckets import Buckets
from longplay.data_shards.preparation.features import Vocabulary, measure
from longplay.data_shards.preparation.selection import Selection
from longplay.data_shards.preparation.shares import WHOLE, Share
from longplay.data_shards.preparation.sorting import concatenated_ranges
from longplay.data_shards.preparation.workers import in_order
from longplay.data_shards.progress import Progress, no_progress
from longplay.data_shards.storage.manifest import ShardInfo
from longplay.data_shards.storage.shard_writer import write_shard

SHARD_GROUP = 24
"""Shard counts are multiples of this, so that common numbers of lanes divide them."""
MAX_SHARD_EVENTS = 4_000_000


def default_num_shards(num_events: int, num_users: int) -> int:
    """Return the smallest multiple of 24 with about 4 M events per shard, at most the number of users."""
    if num_users < SHARD_GROUP:
        return num_users
    wanted = -(-num_events // (MAX_SHARD_EVENTS * SHARD_GROUP)) * SHARD_GROUP
    return min(max(wanted, SHARD_GROUP), num_users // SHARD_GROUP * SHARD_GROUP)


def assign_users(lengths: np.ndarray, num_shards: int, seed: int) -> list[np.ndarray]:
    """Distribute users over shards so that their numbers of users and of events are nearly equal.

    Users are assigned from the longest to the shortest history, to shards in alternating order. `seed`
    shuffles the users within a shard.

    Returns:
        For each shard, the users (indices into `lengths`) in the order in which they are written.
    """
    shuffled = np.random.default_rng(seed).permutation(len(lengths))
    place = np.empty_like(shuffled)
    place[shuffled] = np.arange(len(lengths))
    longest_first = shuffled[np.argsort(-lengths[shuffled], kind="stable")]
    row, column = np.divmod(np.arange(len(lengths)), num_shards)
    shard = np.empty(len(lengths), np.int64)
    shard[longest_first] = np.where(row % 2 == 0, column, num_shards - 1 - column)
    in_order = np.lexsort((place, shard))
    return np.split(in_order, np.cumsum(np.bincount(shard, minlength=num_shards))[:-1])


def write_shards(
    folder: Path,
    buckets: Buckets,
    selection: Selection,
    assignment: list[np.ndarray],
    *,
    vocabularies: Mapping[str, Vocabulary] = MappingProxyType({}),
    floats: Sequence[str] = (),
    num_workers: int,
    share: Share = WHOLE,
    progress: Progress = no_progress,
) -> tuple[list[ShardInfo], dict[str, list[dict[str, Any]]]]:
    """Write `shard-000000.tar`... of a share, numbering users from 0 in the order of `assignment`.

    A shard that exists, with its account in `shard-000000.json`, is kept.

    Returns:
        The shards' entries for the manifest, and for each of the features `floats` the result of
        `features.measure` on each shard.
    """
    first_users = np.cumsum([0, *(len(users) for users in assignment)]).tolist()

    def write(number: int) -> dict[str, Any]:
        path = folder / f"shard-{number:06d}.tar"
        account = path.with_suffix(".json")
        if account.exists() and path.exists():
            return json.loads(account.read_text())
        columns = _shard_columns(buckets, selection, assignment[number], [*vocabularies, *floats])
        for name, vocabulary in vocabularies.items():
            columns[name] = vocabulary.encode(columns[name])
        items, times, features = columns.pop("item"), columns.pop("time"), columns
        info = write_shard(
            path, first_users[number], selection.lengths[assignment[number]], items, times, features
        )
        measured = {name: measure(features[name]) for name in floats}
        content = {"shard": dataclasses.asdict(info), "measured": measured}
        write_bytes(account, json.dumps(content).encode(), sync=False)
        return content

    shards, done = [], 0
    all_measured: dict[str, list[dict[str, Any]]] = {name: [] for name in floats}
    num_events = sum(int(selection.lengths[assignment[number]].sum()) for number in share.of(len(assignment)))
    for content in in_order(write, share.of(len(assignment)), num_workers):
        shards.append(ShardInfo(**content["shard"]))
        for name in floats:
            all_measured[name].append(content["measured"][name])
        done += shards[-1].num_events
        progress("writing shards", done, num_events)
    return shards, all_measured


def remove_accounts(folder: Path) -> None:
    """Delete the accounts of the shards, when all shards are written."""
    for account in folder.glob("shard-*.json"):
        account.unlink()


def _shard_columns(
    buckets: Buckets, selection: Selection, users: np.ndarray, features: Sequence[str]
) -> dict[str, np.ndarray]:
    """Read the kept events of `users` bucket by bucket, and return their columns in the order of the users.

    Returns:
        `item` (item ids), `time` and the features, (events,) each.
    """
    lengths = selection.lengths[users]
    first_events = np.cumsum(lengths) - lengths
    columns = {"item": np.empty(lengths.sum(), np.int32), "time": np.empty(lengths.sum(), np.int64)}
    places = np.lexsort((selection.begin[users], selection.bucket[users]))
    in_bucket = selection.bucket[users[places]]
    for part in np.split(places, np.flatnonzero(np.diff(in_bucket)) + 1):
        of_part = users[part]
        bucket = int(selection.bucket[of_part[0]])
        ranges = selection.begin[of_part], selection.stored[of_part]
        found = {
            "item": selection.item_ids[buckets.item_codes(bucket, ranges)],
            "time": buckets.times(bucket, ranges),
            **{name: buckets.feature(name, bucket, ranges) for name in features},
        }
        if lengths[part].sum() != len(found["item"]):
            is_kept = found["item"] > 0
            found = {name: values[is_kept] for name, values in found.items()}
        at = concatenated_ranges(first_events[part], lengths[part])
        for name, values in found.items():
            columns.setdefault(name, np.empty(lengths.sum(), values.dtype))[at] = values
    return columns
