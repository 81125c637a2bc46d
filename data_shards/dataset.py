"""A prepared dataset, opened and checked."""

from __future__ import annotations

import io
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import polars as pl

from longplay.data_shards.errors import DataError
from longplay.data_shards.locations import Location, in_folder, parse_location, read_whole
from longplay.data_shards.manifest import ITEMS_NAME, MANIFEST_NAME, USERS_NAME, Manifest
from longplay.data_shards.shard_reader import WAY_OUT, DecodedShard
from longplay.data_shards.shard_store import DEFAULT_CACHE_BYTES, OnBadShard, ShardStore
from longplay.data_shards.vocabulary import ItemVocabulary

_WAY_OUT = "restore the file or prepare the dataset again"


@dataclass(frozen=True, eq=False)
class Dataset:
    """A prepared dataset. Users and shards are numbered from 0; a shard's users are consecutive.

    Attributes:
        path: its folder, or the URL below which its files lie.
        lengths: (num_users,) int64 events per user.
        user_original_ids: (num_users,) int64.
        shard_ptr: (num_shards + 1,) int64, the first user of each shard.
        items: original ids and counts of the items.
        store: reads the shards and accounts for those that are skipped.
    """

    path: Location
    manifest: Manifest
    lengths: np.ndarray
    user_original_ids: np.ndarray
    shard_ptr: np.ndarray
    items: ItemVocabulary
    store: ShardStore

    @classmethod
    def open(
        cls,
        path: Location,
        *,
        cache_bytes: int = DEFAULT_CACHE_BYTES,
        on_bad_shard: OnBadShard = "stop",
    ) -> Dataset:
        """Opens a dataset: a folder, or the URL that stands before its files' names.

        Whether all shards are there and of the right size is seen here in a folder, below a URL only when
        they are read.

        Args:
            cache_bytes: memory for decoded shards, so that a small dataset is read once.
            on_bad_shard: `stop` raises for a missing, truncated or damaged shard, here or when it is read;
                `skip` warns and goes on without it.

        Raises:
            DataError: no dataset, a file missing or of another size, tables that contradict the manifest.
        """
        path = parse_location(path)
        manifest = _read_manifest(path)
        users = _read_table(in_folder(path, USERS_NAME), ("original_id", "num_events", "shard"))
        items = _read_table(in_folder(path, ITEMS_NAME), ("item_id", "original_id", "count"))
        shard_ptr = np.cumsum([0, *(shard.num_samples for shard in manifest.shards)])
        lengths = users["num_events"].to_numpy()
        if len(lengths) != manifest.num_users or not np.array_equal(
            users["shard"].to_numpy(), np.repeat(np.arange(len(manifest.shards)), np.diff(shard_ptr))
        ):
            raise DataError(f"{in_folder(path, USERS_NAME)}: does not match the manifest; {_WAY_OUT}")
        per_shard = np.add.reduceat(lengths, shard_ptr[:-1])
        if not np.array_equal(per_shard, [shard.num_events for shard in manifest.shards]):
            raise DataError(
                f"{in_folder(path, USERS_NAME)}: event counts do not match the manifest; {_WAY_OUT}"
            )
        counts = items["count"].to_numpy()
        if len(counts) != manifest.num_items or counts.sum() != manifest.num_events:
            raise DataError(f"{in_folder(path, ITEMS_NAME)}: does not match the manifest; {_WAY_OUT}")
        vocabulary = ItemVocabulary(items["original_id"].to_numpy(), counts)
        store = ShardStore(
            path,
            manifest.shards,
            lengths,
            shard_ptr,
            manifest.num_items,
            cache_bytes=cache_bytes,
            on_bad_shard=on_bad_shard,
        )
        if isinstance(path, Path):
            for index, shard in enumerate(manifest.shards):
                _check_size(store, index, path / shard.name, shard.num_bytes)
        return cls(path, manifest, lengths, users["original_id"].to_numpy(), shard_ptr, vocabulary, store)

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

    def shard(self, index: int, *, with_times: bool = True) -> DecodedShard:
        """The sequences of one shard, from memory if it was read lately; zeros if it is skipped.

        Raises:
            DataError: missing, truncated or damaged.
        """
        return self.store.shard(index, with_times=with_times)

    def sequence(self, user: int) -> tuple[np.ndarray, np.ndarray]:
        """One user's item ids (int32) and times (int64)."""
        index = int(np.searchsorted(self.shard_ptr, user, side="right")) - 1
        shard = self.shard(index)
        assert shard.times is not None
        begin, end = shard.ptr[user - self.shard_ptr[index]], shard.ptr[user - self.shard_ptr[index] + 1]
        return shard.items[begin:end], shard.times[begin:end]

    def verify(self) -> None:
        """Reads every shard and compares its checksum with the manifest's.

        Raises:
            DataError: the first shard whose content differs.
        """
        for index in range(self.num_shards):
            self.store.shard(index, with_times=False)

    def skipped_summary(self) -> str | None:
        """What was left out as bad, as a line to be shown; None if nothing was."""
        skipped = self.store.skipped
        if not skipped:
            return None
        events = self.store.num_skipped_events
        names = ", ".join(self.manifest.shards[index].name for index in sorted(skipped))
        return (
            f"{len(skipped)} bad shard{'s' if len(skipped) > 1 else ''} with {events:,} events "
            f"({100 * events / self.num_events:.2f} %): {names}"
        )


def _check_size(store: ShardStore, index: int, path: Path, num_bytes: int) -> None:
    try:
        found = path.stat().st_size
    except FileNotFoundError:
        store.skip(index, f"{path}: shard is missing; {WAY_OUT}")
        return
    if found != num_bytes:
        store.skip(index, f"{path}: shard has {found} bytes, the manifest says {num_bytes}; {WAY_OUT}")


def _read_manifest(path: Location) -> Manifest:
    if isinstance(path, Path):
        return Manifest.read(path)
    url = in_folder(path, MANIFEST_NAME)
    try:
        return Manifest.parse(read_whole(url).tobytes().decode(), str(url))
    except DataError:
        raise
    except (OSError, ValueError) as error:
        raise DataError(
            f"{url}: cannot be read ({error}); --data takes the folder, or the URL above {MANIFEST_NAME}"
        ) from error


def _read_table(location: Location, columns: tuple[str, ...]) -> pl.DataFrame:
    try:
        source = location if isinstance(location, Path) else io.BytesIO(read_whole(location).tobytes())
        return pl.read_parquet(source, columns=list(columns), glob=False)
    except FileNotFoundError:
        raise DataError(f"{location}: is missing; {_WAY_OUT}") from None
    except DataError:
        raise
    except (OSError, ValueError, pl.exceptions.PolarsError) as error:
        cause = str(error).splitlines()[0]
        raise DataError(f"{location}: cannot be read ({cause}); {_WAY_OUT}") from error
