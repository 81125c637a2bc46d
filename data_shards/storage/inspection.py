"""Describe a prepared dataset: counts, time range, lengths, popularity, repeats and ties."""

from __future__ import annotations

import datetime
import math
from dataclasses import dataclass
from typing import Any

import numpy as np

from longplay.data_shards.progress import Track, untracked
from longplay.data_shards.storage.dataset import Dataset
from longplay.data_shards.storage.features import FeatureInfo
from longplay.data_shards.storage.manifest import SourceInfo
from longplay.data_shards.storage.vocabulary import ItemVocabulary

QUANTILES = (0.01, 0.05, 0.25, 0.5, 0.75, 0.95, 0.99)
TOP_SHARES = (0.01, 0.1)
NUM_TOP_ITEMS = 5


@dataclass(frozen=True, kw_only=True)
class Distribution:
    """Summary of a distribution of integers.

    Attributes:
        min, max, mean: of the integers.
        quantiles: "1%" -> the smallest value v such that at least 1 % of the integers are <= v; one entry for
            each of `QUANTILES`.
    """

    min: int
    quantiles: dict[str, int]
    max: int
    mean: float


@dataclass(frozen=True, kw_only=True)
class Popularity:
    """The distribution of events over items.

    Attributes:
        counts: events per item.
        top_shares: "1%" -> share of the events that belong to the most frequent 1 % of the items, rounded up
            to whole items; one entry for each of `TOP_SHARES`.
        num_single: number of items with one event.
        gini: Gini coefficient; 0 if all items are equally frequent, near 1 if one item has nearly all events.
    """

    counts: Distribution
    top_shares: dict[str, float]
    num_single: int
    gini: float


@dataclass(frozen=True, kw_only=True)
class FeatureSummary:
    """The distribution of an event feature.

    Attributes:
        info: the feature's entry in the manifest.
        missing_fraction: share of events without a value.
        most_frequent: the most frequent value of a categorical feature; None for a float, or without values.
        most_frequent_fraction: share of events with it.
    """

    info: FeatureInfo
    missing_fraction: float
    most_frequent: str | int | None = None
    most_frequent_fraction: float | None = None


@dataclass(frozen=True, kw_only=True)
class Inspection:
    """The result of `inspect_dataset`.

    Attributes:
        source: format, paths and options, as in the manifest.
        original_ids: "users" and "items" -> "type", "integer" or "string", and "example", the first id.
        density: share of (user, item) pairs that have an event.
        time_range: first and last time, in the source's unit.
        time_range_utc: the same times as UTC dates; None if the unit is unknown or a time is out of range.
        lengths: events per user.
        popularity: events per item.
        repeat_fraction: share of events whose user has an earlier event with the item.
        tie_fraction: share of events at the same time as the user's previous event.
        shard_events: minimum, median and maximum number of events of a shard.
        features: the event features.
        item_columns: additional column of the items -> "type", and "present": the share of items with a
            value, None for a column of lists.
        top_items: "item_id" (original), "title" and "count" of the most frequent items, if items have titles.
        num_bytes: size of all shards.
        bytes_per_event: `num_bytes` / `num_events`.
    """

    dataset_id: str
    source: SourceInfo
    original_ids: dict[str, dict[str, Any]]
    rows_in: int
    rows_dropped: dict[str, int]
    num_events: int
    num_users: int
    num_items: int
    density: float
    time_range: tuple[int, int]
    time_range_utc: tuple[str, str] | None
    lengths: Distribution
    popularity: Popularity
    repeat_fraction: float
    tie_fraction: float
    num_shards: int
    shard_events: dict[str, int]
    features: list[FeatureSummary]
    item_columns: dict[str, dict[str, Any]]
    top_items: list[dict[str, Any]]
    num_bytes: int
    bytes_per_event: float


def inspect_dataset(
    dataset: Dataset, track: Track = untracked, *, time_unit_s: float | None = None
) -> Inspection:
    """Describe a dataset. Reads every shard once, one at a time.

    Args:
        dataset: the dataset.
        track: reports progress.
        time_unit_s: seconds in one unit of the dataset's times; None if unknown.

    Raises:
        DataError: a shard is missing or damaged.
    """
    manifest = dataset.manifest
    num_pairs = num_ties = 0
    missing = dict.fromkeys((feature.name for feature in manifest.features), 0)
    for number in track(range(dataset.num_shards), "reading shards"):
        shard = dataset.shard(number, features=missing)
        assert shard.times is not None
        num_pairs += _count_pairs(shard.items, shard.ptr, dataset.num_items)
        num_ties += _count_ties(shard.times, shard.ptr)
        for feature in manifest.features:
            missing[feature.name] += feature.count_missing(shard.features[feature.name])
    time_range = (manifest.time_quantiles[0], manifest.time_quantiles[-1])
    per_shard = _distribution(np.array([shard.num_events for shard in manifest.shards]))
    return Inspection(
        dataset_id=dataset.dataset_id,
        source=manifest.source,
        original_ids={
            name: {"type": "string" if ids.is_text else "integer", "example": ids[0]}
            for name, ids in (("users", dataset.user_original_ids), ("items", dataset.items.original_ids))
        },
        rows_in=manifest.rows_in,
        rows_dropped=manifest.rows_dropped,
        num_events=dataset.num_events,
        num_users=dataset.num_users,
        num_items=dataset.num_items,
        density=num_pairs / (dataset.num_users * dataset.num_items),
        time_range=time_range,
        time_range_utc=_as_dates(time_range, time_unit_s),
        lengths=_distribution(dataset.lengths),
        popularity=_popularity(dataset.item_counts),
        repeat_fraction=(dataset.num_events - num_pairs) / dataset.num_events,
        tie_fraction=num_ties / dataset.num_events,
        num_shards=dataset.num_shards,
        shard_events={"min": per_shard.min, "median": per_shard.quantiles["50%"], "max": per_shard.max},
        features=[_summary(dataset, info, missing[info.name]) for info in manifest.features],
        item_columns=_item_columns(dataset.items),
        top_items=_top_items(dataset.items),
        num_bytes=manifest.num_bytes,
        bytes_per_event=manifest.num_bytes / dataset.num_events,
    )


def _summary(dataset: Dataset, info: FeatureInfo, num_missing: int) -> FeatureSummary:
    missing_fraction = num_missing / dataset.num_events
    if not info.num_values:
        return FeatureSummary(info=info, missing_fraction=missing_fraction)
    value, count = dataset.feature_values(info.name).row(0)
    return FeatureSummary(
        info=info,
        missing_fraction=missing_fraction,
        most_frequent=value,
        most_frequent_fraction=count / dataset.num_events,
    )


def _item_columns(items: ItemVocabulary) -> dict[str, dict[str, Any]]:
    return {
        name: {
            "type": str(dtype),
            "present": None
            if dtype.is_nested()
            else 1 - items.columns.column(name).null_count() / len(items),
        }
        for name, dtype in items.columns.types.items()
    }


def _top_items(items: ItemVocabulary) -> list[dict[str, Any]]:
    item_ids = np.arange(1, min(NUM_TOP_ITEMS, len(items)) + 1)
    titles = items.columns.titles(item_ids)
    if titles is None:
        return []
    rows = zip(items.originals(item_ids).tolist(), titles, items.counts[item_ids - 1].tolist(), strict=True)
    return [{"item_id": item, "title": title, "count": count} for item, title, count in rows]


def percent(share: float) -> str:
    """Format a share: 0.01 -> "1%"."""
    return f"{100 * share:g}%"


def _distribution(values: np.ndarray) -> Distribution:
    """Return the distribution of (n,) integers, n at least 1."""
    quantiles = np.quantile(values, QUANTILES, method="inverted_cdf").tolist()
    return Distribution(
        min=int(values.min()),
        quantiles={percent(share): int(value) for share, value in zip(QUANTILES, quantiles, strict=True)},
        max=int(values.max()),
        mean=float(values.mean()),
    )


def _popularity(counts: np.ndarray) -> Popularity:
    """Return the distribution of (items,) counts in any order."""
    ascending = np.sort(counts)
    num_items, num_events = len(ascending), int(ascending.sum())
    # The area under the Lorenz curve: the sum of i * count_i over i = 1..items in ascending order.
    weighted = float(ascending @ np.arange(1, num_items + 1, dtype=np.float64))
    top = {percent(share): ascending[-num_top(share, num_items) :].sum() / num_events for share in TOP_SHARES}
    return Popularity(
        counts=_distribution(ascending),
        top_shares={name: float(value) for name, value in top.items()},
        num_single=int(np.searchsorted(ascending, 1, side="right")),
        gini=2 * weighted / (num_items * num_events) - (num_items + 1) / num_items,
    )


def num_top(share: float, num_items: int) -> int:
    """Return the number of items in the top `share`, rounded up."""
    return math.ceil(round(share * num_items, 6))


def _count_pairs(items: np.ndarray, ptr: np.ndarray, num_items: int) -> int:
    """Count the distinct (user, item) pairs."""
    user = np.repeat(np.arange(len(ptr) - 1), np.diff(ptr))
    pairs = user * (num_items + 1) + items
    pairs.sort()
    return len(pairs) - int(np.count_nonzero(pairs[1:] == pairs[:-1]))


def _count_ties(times: np.ndarray, ptr: np.ndarray) -> int:
    """Count the events at the same time as the user's previous event."""
    tied = times[1:] == times[:-1]
    tied[ptr[1:-1] - 1] = False
    return int(np.count_nonzero(tied))


def _as_dates(times: tuple[int, int], unit_s: float | None) -> tuple[str, str] | None:
    """Format times as UTC dates. Return None if the unit is unknown or a time is out of range."""
    if unit_s is None:
        return None
    try:
        first, last = (datetime.datetime.fromtimestamp(time * unit_s, datetime.UTC) for time in times)
    except (ValueError, OverflowError, OSError):
        return None
    return f"{first:%Y-%m-%d %H:%M:%S}", f"{last:%Y-%m-%d %H:%M:%S}"
