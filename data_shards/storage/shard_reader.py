"""Decode a tar shard: read it whole, check it against the manifest, and slice its arrays by their offsets."""

from __future__ import annotations

import hashlib
import threading
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from longplay.data_shards.errors import DataError
from longplay.data_shards.storage.locations import Location, read_whole
from longplay.data_shards.storage.manifest import ShardInfo
from longplay.data_shards.storage.shard_layout import (
    ARRAY_HEADER_BYTES,
    BLOCK_BYTES,
    ITEMS_DTYPE,
    TIMES_DTYPE,
    array_offsets,
    read_headers,
)

SHARD_REMEDY = (
    "restore the file or prepare the dataset again, or leave bad shards out with --on-bad-shard skip"
)


class BadShardError(DataError):
    """A shard is missing, truncated or damaged."""


@dataclass(frozen=True)
class DecodedShard:
    """The concatenated sequences of one shard.

    Attributes:
        items: (events,) int32 item ids; all 0 if the shard is skipped.
        times: (events,) int64 in the source's unit; None if only the items were decoded.
        ptr: (users + 1,) int64 first event of each user.
    """

    items: np.ndarray
    times: np.ndarray | None
    ptr: np.ndarray

    @property
    def num_bytes(self) -> int:
        """Memory of the arrays."""
        return self.items.nbytes + self.ptr.nbytes + (0 if self.times is None else self.times.nbytes)


def read_shard(
    location: Location,
    info: ShardInfo,
    first_user: int,
    lengths: np.ndarray,
    num_items: int,
    *,
    with_times: bool = True,
) -> DecodedShard:
    """Read one whole shard and check its checksum, its users and its item ids.

    Args:
        location: the shard.
        info: its size and checksum.
        first_user: index of the shard's first user.
        lengths: (users,) int64 number of events of each user of the shard.
        num_items: largest valid item id.
        with_times: also decode the times.

    Raises:
        BadShardError: the shard is missing, truncated or damaged, or does not match the dataset's tables.
    """

    def check(content: np.ndarray) -> None:
        if hashlib.sha256(content.data).hexdigest() != info.sha256:
            raise ValueError("its content does not match its checksum")

    try:
        content = read_whole(location, info.num_bytes, check)
        items_at, times_at, num_bytes = array_offsets(lengths)
        if num_bytes != info.num_bytes or not _headers_match(content, items_at, first_user, lengths):
            raise ValueError("its users do not match users.parquet")
        ptr = np.concatenate([[0], np.cumsum(lengths)]).astype(np.int64)
        items = _gather(content, ITEMS_DTYPE, items_at, ptr)
        if len(items) and not (items.min() >= 1 and items.max() <= num_items):
            raise ValueError(f"it contains item ids outside 1..{num_items}")
        times = _gather(content, TIMES_DTYPE, times_at, ptr) if with_times else None
    except FileNotFoundError:
        raise BadShardError(f"{location}: shard is missing; {SHARD_REMEDY}") from None
    except (OSError, ValueError) as error:
        if isinstance(error, DataError):
            raise
        cause = (str(error) or type(error).__name__).splitlines()[0]
        what = "cannot be read" if isinstance(error, OSError) else "is damaged"
        raise BadShardError(f"{location}: shard {what} ({cause}); {SHARD_REMEDY}") from error
    return DecodedShard(items, times, ptr)


def _headers_match(content: np.ndarray, items_at: np.ndarray, first_user: int, lengths: np.ndarray) -> bool:
    """Return whether each user's sample has the expected offset, key and length."""
    keys, sizes = read_headers(content, items_at - ARRAY_HEADER_BYTES - BLOCK_BYTES)
    users = np.arange(first_user, first_user + len(lengths))
    expected = ARRAY_HEADER_BYTES + ITEMS_DTYPE.itemsize * lengths
    return np.array_equal(keys, users) and np.array_equal(sizes, expected)


def _gather(content: np.ndarray, dtype: np.dtype, begins: np.ndarray, ptr: np.ndarray) -> np.ndarray:
    """Concatenate arrays of `dtype` that start at the byte offsets `begins` and have lengths `diff(ptr)`."""
    usable = len(content) // dtype.itemsize * dtype.itemsize
    values = content[:usable].view(dtype)
    starts = begins // dtype.itemsize
    bounds = zip(starts.tolist(), (starts + np.diff(ptr)).tolist(), strict=True)
    flat = np.empty(int(ptr[-1]), dtype.newbyteorder("="))
    return np.concatenate([values[begin:end] for begin, end in bounds], out=flat) if len(starts) else flat


class ShardCache:
    """An LRU cache of decoded shards, limited to `max_bytes`. Thread-safe.

    Different threads can load shards concurrently.

    Args:
        load: (index of the shard, with_times) -> the decoded shard.
        max_bytes: maximum memory of the cached shards.
    """

    def __init__(self, load: Callable[[int, bool], DecodedShard], max_bytes: int) -> None:
        self._load = load
        self._max_bytes = max_bytes
        self._shards: OrderedDict[int, DecodedShard] = OrderedDict()
        self._num_bytes = 0
        self._lock = threading.Lock()

    def get(self, shard: int, *, with_times: bool) -> DecodedShard:
        """Return the shard. Load it if it is not cached, or is cached without the times that are needed."""
        with self._lock:
            cached = self._shards.get(shard)
            if cached is not None and (cached.times is not None or not with_times):
                self._shards.move_to_end(shard)
                return cached
            self._drop(shard)
        decoded = self._load(shard, with_times)
        with self._lock:
            self._drop(shard)
            self._shards[shard] = decoded
            self._num_bytes += decoded.num_bytes
            while self._num_bytes > self._max_bytes:
                self._drop(next(iter(self._shards)))
        return decoded

    def drop(self, shard: int) -> None:
        """Remove a shard from the cache."""
        with self._lock:
            self._drop(shard)

    def _drop(self, shard: int) -> None:
        if shard in self._shards:
            self._num_bytes -= self._shards.pop(shard).num_bytes
