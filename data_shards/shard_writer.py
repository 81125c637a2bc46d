"""Sequences -> tar shards that WebDataset reads, the same bytes for the same input."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from longplay.data_shards.manifest import ShardInfo
from longplay.data_shards.sequences import Sequences
from longplay.data_shards.shard_layout import ShardWriter
from longplay.data_shards.sources import Progress, no_progress

SHARD_GROUP = 24
"""Shard counts are multiples of this, so that any usual number of lanes gets equally many."""
MAX_SHARD_EVENTS = 4_000_000


def default_num_shards(num_events: int, num_users: int) -> int:
    """The smallest multiple of 24 that keeps a shard near 4 M events; never more than there are users."""
    if num_users < SHARD_GROUP:
        return num_users
    wanted = -(-num_events // (MAX_SHARD_EVENTS * SHARD_GROUP)) * SHARD_GROUP
    return min(max(wanted, SHARD_GROUP), num_users // SHARD_GROUP * SHARD_GROUP)


def assign_users(lengths: np.ndarray, num_shards: int, seed: int) -> list[np.ndarray]:
    """Deals users to shards: equally many to within one, nearly equal events, in an order drawn from `seed`.

    Users are dealt from the longest to the shortest, to the shards forth and back.

    Returns:
        For each shard, the users (indices into `lengths`) in the order they are written.
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
    folder: Path, sequences: Sequences, assignment: list[np.ndarray], progress: Progress = no_progress
) -> list[ShardInfo]:
    """Writes `shard-00000.tar`... into `folder`; users are numbered from 0 as `assignment` orders them."""
    shards, next_user = [], 0
    for number, users in enumerate(assignment):
        path = folder / f"shard-{number:05d}.tar"
        shards.append(_write_shard(path, sequences, users, next_user))
        next_user += len(users)
        progress("writing shards", number + 1, len(assignment))
    return shards


def _write_shard(path: Path, sequences: Sequences, users: np.ndarray, first_user: int) -> ShardInfo:
    with ShardWriter(path) as shard:
        for user_index, user in enumerate(users.tolist(), first_user):
            begin, end = sequences.ptr[user], sequences.ptr[user + 1]
            shard.add(user_index, sequences.items[begin:end], sequences.times[begin:end])
        return shard.close()
