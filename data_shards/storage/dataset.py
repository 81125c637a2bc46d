"""Open a prepared dataset and check it against its manifest."""

from __future__ import annotations

import functools
import io
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import polars as pl
import pyarrow as pa
import pyarrow.parquet as pq

from longplay.data_shards.errors import DataError, OnBadShard
from longplay.data_shards.storage.features import vocabulary_name
from longplay.data_shards.storage.id_column import IdColumn
from longplay.data_shards.storage.item_columns import ItemColumns
from longplay.data_shards.storage.locations import Location, in_folder, parse_location, read_whole
from longplay.data_shards.storage.manifest import ITEMS_NAME, MANIFEST_NAME, USERS_NAME, Manifest
from longplay.data_shards.storage.parquet_tables import read_table
from longplay.data_shards.storage.shard_reader import SHARD_REMEDY, DecodedShard
from longplay.data_shards.storage.shard_store import DEFAULT_CACHE_BYTES, ShardStore
from longplay.data_shards.storage.vocabulary import ItemVocabulary

_TABLE_REMEDY = "restore the file or prepare the dataset again"


@dataclass(frozen=True, eq=False)
class Dataset:
    """A prepared dataset. Users and shards are numbered from 0; the users of a shard are consecutive.

    Attributes:
        path: its folder, or the base URL of its files.
        manifest: counts, provenance and shards.
        lengths: (num_users,) int64 number of events of each user.
        shard_ptr: (num_shards + 1,) int64 first user of each shard.
        store: reads the shards and records which ones are skipped.
    """

    path: Location
    manifest: Manifest
    lengths: np.ndarray
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
        """Open a dataset in a folder or below a URL.

        In a folder, this checks that all shards exist and have the right size. Below a URL, shards are
        checked when they are read.

        Args:
            path: the folder, or the base URL of the files.
            cache_bytes: memory for decoded shards, so that a small dataset is read once.
            on_bad_shard: `stop` raises for a missing, truncated or damaged shard, here or when it is read;
                `skip` warns and leaves it out.

        Raises:
            DataError: the location has no manifest, a file is missing or has the wrong size, or the tables do
                not match the manifest.
        """
        path = parse_location(path)
        manifest = _read_manifest(path)
        users = _read_table(in_folder(path, USERS_NAME), ("num_events", "shard"), manifest.num_users)
        shard_ptr = np.cumsum([0, *(shard.num_users for shard in manifest.shards)])
        lengths = users["num_events"].to_numpy()
        shard_of = np.repeat(np.arange(len(manifest.shards)), np.diff(shard_ptr))
        per_shard = np.add.reduceat(lengths, shard_ptr[:-1])
        if not np.array_equal(users["shard"].to_numpy(), shard_of) or not np.array_equal(
            per_shard, [shard.num_events for shard in manifest.shards]
        ):
            raise _mismatch(in_folder(path, USERS_NAME))
        if isinstance(path, Path):
            _check_items(path / ITEMS_NAME, manifest)
        store = ShardStore(
            path,
            manifest.shards,
            lengths,
            shard_ptr,
            manifest.num_items,
            features=manifest.features,
            cache_bytes=cache_bytes,
            on_bad_shard=on_bad_shard,
        )
        if isinstance(path, Path):
            for index, shard in enumerate(manifest.shards):
                _check_size(store, index, path / shard.name, shard.num_bytes)
        return cls(path, manifest, lengths, shard_ptr, store)

    @functools.cached_property
    def user_original_ids(self) -> IdColumn:
        """Id of each user in the source, (num_users,) integers or strings, read on first access.

        Raises:
            DataError: the table is missing or damaged.
        """
        location = in_folder(self.path, USERS_NAME)
        return _ids(location, _read_table(location, ("original_id",), self.num_users))

    @functools.cached_property
    def items(self) -> ItemVocabulary:
        """Original ids, counts and columns of the items, read on first access.

        Raises:
            DataError: the table is missing or damaged.
        """
        location = in_folder(self.path, ITEMS_NAME)
        ids = _ids(location, _read_table(location, ("original_id",), self.num_items))
        return ItemVocabulary(ids, self.item_counts, self.item_columns)

    @functools.cached_property
    def item_counts(self) -> np.ndarray:
        """(num_items,) int64 number of events of each item, in descending order, read on first access.

        Raises:
            DataError: the table is missing or damaged.
        """
        location = in_folder(self.path, ITEMS_NAME)
        counts = _read_table(location, ("count",), self.num_items)["count"].to_numpy()
        if counts.sum() != self.num_events:
            raise _mismatch(location)
        return counts

    @functools.cached_property
    def item_columns(self) -> ItemColumns:
        """The columns of items.parquet beyond ids and counts."""
        location = in_folder(self.path, ITEMS_NAME)
        return ItemColumns(lambda: _open_table(location), location)

    def feature_values(self, name: str) -> pl.DataFrame:
        """Return the `value` and `count` of each code, from 1, of a categorical feature.

        Raises:
            DataError: the dataset has no such categorical feature, or the file is missing or damaged.
        """
        feature = self.manifest.feature(name)
        if feature.kind != "categorical":
            raise DataError(f"feature {name!r}: is {feature.kind}, so it has no list of values")
        location = in_folder(self.path, vocabulary_name(name))
        return _read_table(location, ("value", "count"), feature.num_values)

    @property
    def dataset_id(self) -> str:
        """Fingerprint of the id mappings and the shards. Does not depend on the folder."""
        return self.manifest.dataset_id

    @property
    def num_users(self) -> int:
        return self.manifest.num_users

    @property
    def num_items(self) -> int:
        """Number of items. Item ids are 1..num_items."""
        return self.manifest.num_items

    @property
    def num_events(self) -> int:
        return self.manifest.num_events

    @property
    def num_shards(self) -> int:
        return len(self.manifest.shards)

    def shard(self, index: int, *, with_times: bool = True, features: Iterable[str] = ()) -> DecodedShard:
        """Return the sequences of one shard, from the cache if possible; zeros if the shard is skipped.

        Args:
            index: number of the shard.
            with_times: also return the times.
            features: names of the features to return; more may be returned.

        Raises:
            DataError: the shard is missing, truncated or damaged.
        """
        return self.store.shard(index, with_times=with_times, features=features)

    def sequence(self, user: int) -> tuple[np.ndarray, np.ndarray]:
        """Return the item ids, (events,) int32, and times, (events,) int64, of one user."""
        shard, events = self._events_of(user, ())
        assert shard.times is not None
        return shard.items[events], shard.times[events]

    def features_of(self, user: int, names: Iterable[str]) -> dict[str, np.ndarray]:
        """Return the int32 codes or float32 values (events,) of features of one user's events."""
        names = tuple(names)
        shard, events = self._events_of(user, names)
        return {name: shard.features[name][events] for name in names}

    def _events_of(self, user: int, features: tuple[str, ...]) -> tuple[DecodedShard, slice]:
        """Return the shard of a user and the place of the user's events in it."""
        index = int(np.searchsorted(self.shard_ptr, user, side="right")) - 1
        shard, number = self.shard(index, features=features), user - self.shard_ptr[index]
        return shard, slice(shard.ptr[number], shard.ptr[number + 1])

    def verify(self) -> None:
        """Read every shard and check its checksum.

        Raises:
            DataError: the content of a shard differs from its checksum.
        """
        for index in range(self.num_shards):
            self.store.shard(index, with_times=False)

    def skipped_summary(self) -> str | None:
        """Return one line that names the skipped shards, or None if no shard is skipped."""
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
        store.skip(index, f"{path}: shard is missing; {SHARD_REMEDY}")
        return
    if found != num_bytes:
        store.skip(index, f"{path}: shard has {found} bytes, expected {num_bytes}; {SHARD_REMEDY}")


def _check_items(path: Path, manifest: Manifest) -> None:
    """Check the numbers of items and events against the manifest. Reads a million items at a time.

    Raises:
        DataError: a number differs, or the file is missing or damaged.
    """
    num_items = num_events = 0
    try:
        with pq.ParquetFile(path.absolute()) as file:
            for batch in file.iter_batches(1 << 20, columns=["count"]):
                num_items += batch.num_rows
                num_events += int(batch["count"].to_numpy().sum())
    except FileNotFoundError:
        raise DataError(f"{path}: is missing; {_TABLE_REMEDY}") from None
    except (OSError, KeyError, pa.ArrowException) as error:
        raise DataError(f"{path}: cannot be read ({str(error).splitlines()[0]}); {_TABLE_REMEDY}") from error
    if (num_items, num_events) != (manifest.num_items, manifest.num_events):
        raise _mismatch(path)


def _mismatch(location: Location) -> DataError:
    return DataError(f"{location}: does not match the manifest; {_TABLE_REMEDY}")


def _read_manifest(path: Location) -> Manifest:
    if isinstance(path, Path):
        return Manifest.read(path)
    url = in_folder(path, MANIFEST_NAME)
    try:
        return Manifest.parse(read_whole(url).tobytes(), str(url))
    except DataError:
        raise
    except (OSError, ValueError) as error:
        raise DataError(
            f"{url}: cannot be read ({error}); --data takes the folder or URL that contains {MANIFEST_NAME}"
        ) from error


def _ids(location: Location, table: pl.DataFrame) -> IdColumn:
    try:
        return IdColumn(table["original_id"])
    except DataError as error:
        raise DataError(f"{location}: {error}; {_TABLE_REMEDY}") from None


def _open_table(location: Location) -> Path | io.BytesIO:
    return location if isinstance(location, Path) else io.BytesIO(read_whole(location).tobytes())


def _read_table(location: Location, columns: tuple[str, ...], num_rows: int | None) -> pl.DataFrame:
    """Read columns of a table.

    Raises:
        DataError: the file is missing or damaged, or does not have `num_rows` rows.
    """
    try:
        table = read_table(_open_table(location), columns)
    except FileNotFoundError:
        raise DataError(f"{location}: is missing; {_TABLE_REMEDY}") from None
    except DataError:
        raise
    except (OSError, ValueError, pl.exceptions.PolarsError) as error:
        cause = str(error).splitlines()[0]
        raise DataError(f"{location}: cannot be read ({cause}); {_TABLE_REMEDY}") from error
    if len(table) != num_rows:
        raise _mismatch(location)
    return table
