"""A prepared dataset, opened and checked."""

from __future__ import annotations

import functools
import io
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import polars as pl
import pyarrow as pa
import pyarrow.parquet as pq

from longplay.data_shards.errors import DataError
from longplay.data_shards.storage.locations import Location, in_folder, parse_location, read_whole
from longplay.data_shards.storage.manifest import ITEMS_NAME, MANIFEST_NAME, USERS_NAME, Manifest
from longplay.data_shards.storage.shard_reader import WAY_OUT, DecodedShard
from longplay.data_shards.storage.shard_store import DEFAULT_CACHE_BYTES, OnBadShard, ShardStore
from longplay.data_shards.storage.vocabulary import ItemVocabulary

_WAY_OUT = "restore the file or prepare the dataset again"


@dataclass(frozen=True, eq=False)
class Dataset:
    """A prepared dataset. Users and shards are numbered from 0; a shard's users are consecutive.

    Attributes:
        path: its folder, or the URL below which its files lie.
        lengths: (num_users,) int64 events per user.
        user_original_ids: (num_users,) int64.
        shard_ptr: (num_shards + 1,) int64, the first user of each shard.
        store: reads the shards and accounts for those that are skipped.
    """

    path: Location
    manifest: Manifest
    lengths: np.ndarray
    user_original_ids: np.ndarray
    shard_ptr: np.ndarray
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
        if isinstance(path, Path):
            _check_items(path / ITEMS_NAME, manifest)
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
        return cls(path, manifest, lengths, users["original_id"].to_numpy(), shard_ptr, store)

    @functools.cached_property
    def items(self) -> ItemVocabulary:
        """Original ids and counts of the items, 16 bytes each; read when first asked for.

        Raises:
            DataError: missing or damaged.
        """
        location = in_folder(self.path, ITEMS_NAME)
        table = _read_table(location, ("original_id", "count"))
        counts = table["count"].to_numpy()
        if len(counts) != self.num_items or counts.sum() != self.num_events:
            raise DataError(f"{location}: does not match the manifest; {_WAY_OUT}")
        return ItemVocabulary(table["original_id"].to_numpy(), counts)

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


def _check_items(path: Path, manifest: Manifest) -> None:
    """Whether the items are as many as the manifest says, and their events; a million at a time.

    Raises:
        DataError: they are not, or the file is missing or damaged.
    """
    num_items = num_events = 0
    try:
        with pq.ParquetFile(path) as file:
            for batch in file.iter_batches(1 << 20, columns=["count"]):
                num_items += batch.num_rows
                num_events += int(batch["count"].to_numpy().sum())
    except FileNotFoundError:
        raise DataError(f"{path}: is missing; {_WAY_OUT}") from None
    except (OSError, KeyError, pa.ArrowException) as error:
        raise DataError(f"{path}: cannot be read ({str(error).splitlines()[0]}); {_WAY_OUT}") from error
    if (num_items, num_events) != (manifest.num_items, manifest.num_events):
        raise DataError(f"{path}: does not match the manifest; {_WAY_OUT}")


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
