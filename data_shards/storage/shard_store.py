"""Read the shards of a dataset. A bad shard either raises or is skipped and recorded."""

from __future__ import annotations

import threading
import warnings
from collections.abc import Iterable

import numpy as np

from longplay.data_shards.errors import DataError, OnBadShard
from longplay.data_shards.storage.features import FeatureInfo
from longplay.data_shards.storage.locations import Location, in_folder
from longplay.data_shards.storage.manifest import ShardInfo
from longplay.data_shards.storage.shard_reader import (
    SHARD_REMEDY,
    BadShardError,
    DecodedShard,
    ShardCache,
    read_shard,
)

DEFAULT_CACHE_BYTES = 1 << 30


class ShardStore:
    """Reads shards, caches the most recently used ones, and records those that are skipped. Thread-safe.

    The items and times of a skipped shard read as 0, its features as missing, until the process ends, even
    if its file is restored.

    Args:
        path: the dataset's folder or base URL.
        shards: name, size and checksum of each shard.
        lengths: (users,) int64 number of events of each user.
        shard_ptr: (shards + 1,) int64 first user of each shard.
        num_items: largest valid item id.
        features: the dataset's features.
        cache_bytes: memory for decoded shards.
        on_bad_shard: `stop` raises for a bad shard, `skip` warns once per bad shard.
    """

    def __init__(
        self,
        path: Location,
        shards: tuple[ShardInfo, ...],
        lengths: np.ndarray,
        shard_ptr: np.ndarray,
        num_items: int,
        *,
        features: tuple[FeatureInfo, ...] = (),
        cache_bytes: int = DEFAULT_CACHE_BYTES,
        on_bad_shard: OnBadShard = "stop",
    ) -> None:
        assert on_bad_shard in ("stop", "skip"), on_bad_shard
        self.path, self.shards, self.lengths, self.shard_ptr = path, shards, lengths, shard_ptr
        self.num_items, self.on_bad_shard = num_items, on_bad_shard
        self._features = {feature.name: feature for feature in features}
        self._skipped: dict[int, str] = {}
        self._lock = threading.Lock()
        self._cache = ShardCache(self._read, cache_bytes)

    def shard(self, index: int, *, with_times: bool, features: Iterable[str] = ()) -> DecodedShard:
        """Return the sequences of one shard, from the cache if possible; zeros if the shard is skipped.

        Args:
            index: number of the shard.
            with_times: also return the times.
            features: names of the features to return; more may be returned.

        Raises:
            DataError: the shard is missing, truncated or damaged, and `on_bad_shard` is `stop`.
        """
        names = frozenset(features)
        if index in self._skipped:
            return self._zeros(index, names)
        try:
            return self._cache.get(index, with_times=with_times, features=names)
        except BadShardError as error:
            self.skip(index, str(error))
            return self._zeros(index, names)

    @property
    def skipped(self) -> dict[int, str]:
        """Index of each skipped shard -> reason, in the order of discovery."""
        with self._lock:
            return dict(self._skipped)

    @property
    def num_skipped_events(self) -> int:
        """Events in the skipped shards."""
        return sum(self.shards[index].num_events for index in self.skipped)

    def skip(self, index: int, reason: str) -> None:
        """Skip a shard from now on. Warn the first time.

        Raises:
            BadShardError: `on_bad_shard` is `stop`.
            DataError: all shards are bad.
        """
        if self.on_bad_shard == "stop":
            raise BadShardError(reason)
        with self._lock:
            if index in self._skipped:
                return
            self._skipped[index] = reason
            left = len(self.shards) - len(self._skipped)
        self._cache.drop(index)
        if not left:
            raise DataError(f"{self.path}: all {len(self.shards)} shards are bad (the last one: {reason})")
        cause = reason.removesuffix(f"; {SHARD_REMEDY}")
        warnings.warn(f"{cause}; skipped its {self.shards[index].num_events:,} events", stacklevel=2)

    def _read(self, index: int, with_times: bool, features: frozenset[str]) -> DecodedShard:
        begin, end = int(self.shard_ptr[index]), int(self.shard_ptr[index + 1])
        info = self.shards[index]
        return read_shard(
            in_folder(self.path, info.name),
            info,
            begin,
            self.lengths[begin:end],
            self.num_items,
            with_times=with_times,
            features=[self._features[name] for name in sorted(features)],
        )

    def _zeros(self, index: int, features: frozenset[str]) -> DecodedShard:
        lengths = self.lengths[self.shard_ptr[index] : self.shard_ptr[index + 1]]
        ptr = np.concatenate([[0], np.cumsum(lengths)]).astype(np.int64)
        events = int(ptr[-1])
        missing = {name: self._features[name].missing(events) for name in features}
        return DecodedShard(np.zeros(events, np.int32), np.zeros(events, np.int64), ptr, missing)
