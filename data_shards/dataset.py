"""A prepared dataset, opened and checked."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import polars as pl

from longplay.data_shards.errors import DataError
from longplay.data_shards.manifest import ITEMS_NAME, USERS_NAME, Manifest
from longplay.data_shards.shard_reader import DecodedShard, ShardCache, read_shard
from longplay.data_shards.vocabulary import ItemVocabulary

DEFAULT_CACHE_BYTES = 1 << 30
_WAY_OUT = "restore the file or prepare the dataset again"


@dataclass(frozen=True, eq=False)
class Dataset:
    """A prepared dataset folder. Users and shards are numbered from 0; a shard's users are consecutive.

    Attributes:
        lengths: (num_users,) int64 events per user.
        user_original_ids: (num_users,) int64.
        shard_ptr: (num_shards + 1,) int64, the first user of each shard.
        items: original ids and counts of the items.
        cache_bytes: memory for decoded shards, so that a small dataset is read from disk once.
    """

    path: Path
    manifest: Manifest
    lengths: np.ndarray
    user_original_ids: np.ndarray
    shard_ptr: np.ndarray
    items: ItemVocabulary
    cache_bytes: int = DEFAULT_CACHE_BYTES
    _shards: ShardCache = field(init=False, repr=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "_shards", ShardCache(self._read_shard, self.cache_bytes))

    @classmethod
    def open(cls, path: Path | str, *, cache_bytes: int = DEFAULT_CACHE_BYTES) -> Dataset:
        """Opens a dataset folder; checks that all its files are there and of the right size.

        Raises:
            DataError: no dataset, a file missing or of another size, tables that contradict the manifest.
        """
        path = Path(path)
        manifest = Manifest.read(path)
        for shard in manifest.shards:
            _check_size(path / shard.name, shard.num_bytes)
        users = _read_table(path / USERS_NAME, ("original_id", "num_events", "shard"))
        items = _read_table(path / ITEMS_NAME, ("item_id", "original_id", "count"))
        shard_ptr = np.cumsum([0, *(shard.num_samples for shard in manifest.shards)])
        lengths = users["num_events"].to_numpy()
        if len(lengths) != manifest.num_users or not np.array_equal(
            users["shard"].to_numpy(), np.repeat(np.arange(len(manifest.shards)), np.diff(shard_ptr))
        ):
            raise DataError(f"{path / USERS_NAME}: does not match the manifest; {_WAY_OUT}")
        per_shard = np.add.reduceat(lengths, shard_ptr[:-1])
        if not np.array_equal(per_shard, [shard.num_events for shard in manifest.shards]):
            raise DataError(f"{path / USERS_NAME}: event counts do not match the manifest; {_WAY_OUT}")
        counts = items["count"].to_numpy()
        if len(counts) != manifest.num_items or counts.sum() != manifest.num_events:
            raise DataError(f"{path / ITEMS_NAME}: does not match the manifest; {_WAY_OUT}")
        vocabulary = ItemVocabulary(items["original_id"].to_numpy(), counts)
        originals = users["original_id"].to_numpy()
        return cls(path, manifest, lengths, originals, shard_ptr, vocabulary, cache_bytes)

    @property
    def dataset_id(self) -> str:
        """Fingerprint of the mappings and shards; the same for equal datasets wherever they lie."""
        return self.manifest.dataset_id

    @property
    def num_users(self) -> int:
        return self.manifest.num_users

    @property
    def num_items(self) -> int:
        """Item ids run from 1 to this."""
        return self.manifest.num_items

    @property
    def num_events(self) -> int:
        return self.manifest.num_events

    @property
    def num_shards(self) -> int:
        return len(self.manifest.shards)

    def shard(self, index: int) -> DecodedShard:
        """The sequences of one shard, from memory if it was read lately.

        Raises:
            DataError: missing or damaged.
        """
        return self._shards[index]

    def sequence(self, user: int) -> tuple[np.ndarray, np.ndarray]:
        """One user's item ids (int32) and times (int64)."""
        index = int(np.searchsorted(self.shard_ptr, user, side="right")) - 1
        shard = self.shard(index)
        begin, end = shard.ptr[user - self.shard_ptr[index]], shard.ptr[user - self.shard_ptr[index] + 1]
        return shard.items[begin:end], shard.times[begin:end]

    def verify(self) -> None:
        """Compares every shard's checksum with the manifest's.

        Raises:
            DataError: the first shard whose content differs.
        """
        for shard in self.manifest.shards:
            path = self.path / shard.name
            with path.open("rb") as file:
                sha256 = hashlib.file_digest(file, "sha256").hexdigest()
            if sha256 != shard.sha256:
                raise DataError(f"{path}: shard's content differs from its checksum; {_WAY_OUT}")

    def _read_shard(self, index: int) -> DecodedShard:
        begin, end = self.shard_ptr[index], self.shard_ptr[index + 1]
        path = self.path / self.manifest.shards[index].name
        return read_shard(path, int(begin), self.lengths[begin:end], self.num_items)


def _check_size(path: Path, num_bytes: int) -> None:
    try:
        found = path.stat().st_size
    except FileNotFoundError:
        raise DataError(f"{path}: shard is missing; {_WAY_OUT}") from None
    if found != num_bytes:
        raise DataError(f"{path}: shard has {found} bytes, the manifest says {num_bytes}; {_WAY_OUT}")


def _read_table(path: Path, columns: tuple[str, ...]) -> pl.DataFrame:
    try:
        return pl.read_parquet(path, columns=list(columns), glob=False)
    except FileNotFoundError:
        raise DataError(f"{path}: is missing; {_WAY_OUT}") from None
    except (OSError, pl.exceptions.PolarsError) as error:
        cause = str(error).splitlines()[0]
        raise DataError(f"{path}: cannot be read ({cause}); {_WAY_OUT}") from error
