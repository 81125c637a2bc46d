"""Datasets with event features, written through the storage without a preparation."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl

from longplay.data_shards.storage.dataset import Dataset
from longplay.data_shards.storage.features import FeatureInfo, vocabulary_name
from longplay.data_shards.storage.manifest import (
    ITEMS_NAME,
    NUM_QUANTILES,
    USERS_NAME,
    Manifest,
    TimeUnit,
    dataset_fingerprint,
)
from longplay.data_shards.storage.shard_writer import write_shard


def by_falling_count(values: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return codes 1.. by falling count, values and counts; None and NaN have code 0."""
    column = pl.Series("value", values, nan_to_null=True)
    table = column.drop_nulls().value_counts().sort(["count", "value"], descending=[True, False])
    places = dict(zip(table["value"].to_list(), range(1, len(table) + 1), strict=True))
    codes = np.array([0 if value is None else places[value] for value in column.to_list()], np.int32)
    return codes, table["value"].to_numpy(), table["count"].to_numpy().astype(np.int64)


def described(name: str, values: np.ndarray) -> FeatureInfo:
    """Return the manifest's entry of a float feature."""
    present = values.astype(np.float32)[~np.isnan(values)].astype(np.float64)
    if not len(present):
        return FeatureInfo(name=name, kind="float")
    least, most, mean, std = present.min(), present.max(), present.mean(), present.std()
    return FeatureInfo(
        name=name, kind="float", least=float(least), most=float(most), mean=float(mean), std=float(std)
    )


def write_dataset(
    out: Path,
    lengths: np.ndarray,
    items: np.ndarray,
    times: np.ndarray,
    *,
    categorical: Mapping[str, np.ndarray] | None = None,
    floats: Mapping[str, np.ndarray] | None = None,
    item_columns: Mapping[str, Any] | None = None,
    time_unit: TimeUnit | None = "s",
    num_shards: int = 4,
) -> Dataset:
    """Write and open a dataset.

    Args:
        out: its folder.
        lengths: (users,) events of each user.
        items, times: (events,) each, user by user; times do not decrease within a user.
        categorical: feature -> (events,) values; None = missing.
        floats: feature -> (events,) values; NaN = missing.
        item_columns: more columns of items.parquet, as functions of the original item ids or as values by
            item id.
    """
    out.mkdir(parents=True)
    item_ids, originals, item_counts = by_falling_count(items)
    features, infos, vocabularies = {}, [], {}
    for name, values in (categorical or {}).items():
        features[name], known, counts = by_falling_count(values)
        infos.append(FeatureInfo(name=name, kind="categorical", num_values=len(known)))
        vocabularies[name] = known.tolist()
        pl.DataFrame({"value": known.tolist(), "count": counts}).write_parquet(out / vocabulary_name(name))
    for name, values in (floats or {}).items():
        features[name] = values.astype(np.float32)
        infos.append(described(name, values))
    shards, first_event = [], 0
    parts = np.array_split(np.arange(len(lengths)), num_shards)
    for number, users in enumerate(parts):
        events = slice(first_event, first_event + int(lengths[users].sum()))
        of_shard = {name: values[events] for name, values in features.items()}
        path = out / f"shard-{number:06d}.tar"
        shards.append(
            write_shard(path, int(users[0]), lengths[users], item_ids[events], times[events], of_shard)
        )
        first_event = events.stop
    user_ids = np.arange(len(lengths))
    users_table = {
        "user_index": user_ids,
        "original_id": user_ids,
        "num_events": lengths,
        "shard": np.repeat(np.arange(num_shards), [len(users) for users in parts]),
        "position": np.concatenate([np.arange(len(users)) for users in parts]),
    }
    pl.DataFrame(users_table).write_parquet(out / USERS_NAME)
    items_table = {
        "item_id": np.arange(1, len(originals) + 1),
        "original_id": originals,
        "count": item_counts,
        **(item_columns or {}),
    }
    pl.DataFrame(items_table).write_parquet(out / ITEMS_NAME)
    quantiles = np.quantile(times, np.linspace(0, 1, NUM_QUANTILES + 1), method="inverted_cdf")
    Manifest(
        dataset_id=dataset_fingerprint(originals, user_ids, shards, vocabularies),
        source={"format": "test", "paths": [], "options": {}},
        rows_in=len(items),
        rows_dropped={},
        num_events=len(items),
        num_users=len(lengths),
        num_items=len(originals),
        time_quantiles=quantiles.astype(int).tolist(),
        shards=tuple(shards),
        features=tuple(infos),
        time_unit=time_unit,
    ).write(out)
    return Dataset.open(out)


def random_dataset(out: Path, lengths: np.ndarray, *, seed: int = 0, **more: Any) -> Dataset:
    """Write a dataset of random events with the features `genre` (text), `hour` (integers) and `price`."""
    rng = np.random.default_rng(seed)
    events = int(lengths.sum())
    genre = rng.choice(np.array(["rock", "jazz", "folk", None], object), events, p=[0.5, 0.3, 0.1, 0.1])
    price = np.where(rng.random(events) < 0.1, np.nan, rng.normal(10, 3, events))
    gaps = rng.integers(0, 100_000, events)
    return write_dataset(
        out,
        lengths,
        (rng.random(events) ** 2 * 200).astype(np.int64),
        1_000_000_000 + np.concatenate([np.cumsum(part) for part in np.split(gaps, np.cumsum(lengths)[:-1])]),
        categorical={"genre": genre, "hour": rng.integers(0, 24, events)},
        floats={"price": price},
        **more,
    )
