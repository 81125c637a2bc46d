"""Write sequences to tar shards that WebDataset can read. Equal input gives equal bytes."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import numpy as np

from longplay.common.atomic import write_bytes
from longplay.data_shards.preparation.buckets import Buckets
from longplay.data_shards.preparation.selection import Selection
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
    turn, seat = np.divmod(np.arange(len(lengths)), num_shards)
    shard = np.empty(len(lengths), np.int64)
    shard[longest_first] = np.where(turn % 2 == 0, seat, num_shards - 1 - seat)
    in_order = np.lexsort((place, shard))
    return np.split(in_order, np.cumsum(np.bincount(shard, minlength=num_shards))[:-1])


def write_shards(
    folder: Path,
    buckets: Buckets,
    selection: Selection,
    assignment: list[np.ndarray],
    *,
    num_workers: int,
    progress: Progress = no_progress,
) -> list[ShardInfo]:
    """Write `shard-000000.tar`... into `folder`, numbering users from 0 in the order of `assignment`.

    A shard that exists, with its entry for the manifest in `shard-000000.json`, is kept.
    """
    first_users = np.cumsum([0, *(len(users) for users in assignment)]).tolist()

    def write(number: int) -> ShardInfo:
        path = folder / f"shard-{number:06d}.tar"
        account = path.with_suffix(".json")
        if account.exists() and path.exists():
            return ShardInfo(**json.loads(account.read_text()))
        info = _write_shard(path, buckets, selection, assignment[number], first_users[number])
        write_bytes(account, json.dumps(dataclasses.asdict(info)).encode(), sync=False)
        return info

    shards, done = [], 0
    for info in in_order(write, range(len(assignment)), num_workers):
        shards.append(info)
        done += info.num_events
        progress("writing shards", done, selection.num_events)
    for info in shards:
        (folder / info.name).with_suffix(".json").unlink()
    return shards


def _write_shard(
    path: Path, buckets: Buckets, selection: Selection, users: np.ndarray, first_user: int
) -> ShardInfo:
    """Read the events of `users` bucket by bucket, and write them in the order of the users."""
    lengths = selection.lengths[users]
    first_events = np.cumsum(lengths) - lengths
    items, times = np.empty(lengths.sum(), np.int32), np.empty(lengths.sum(), np.int64)
    places = np.lexsort((selection.begin[users], selection.bucket[users]))
    in_bucket = selection.bucket[users[places]]
    for part in np.split(places, np.flatnonzero(np.diff(in_bucket)) + 1):
        of_part = users[part]
        bucket, stored = int(selection.bucket[of_part[0]]), selection.stored[of_part]
        ids = selection.item_ids[buckets.item_codes(bucket, selection.begin[of_part], stored)]
        when = buckets.times(bucket, selection.begin[of_part], stored)
        if lengths[part].sum() != len(ids):
            stays = ids > 0
            ids, when = ids[stays], when[stays]
        at = concatenated_ranges(first_events[part], lengths[part])
        items[at], times[at] = ids, when
    return write_shard(path, first_user, lengths, items, times)
