"""Assign codes to the values of categorical features, and compute the statistics of float features."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import polars as pl

from longplay.data_shards.errors import DataError
from longplay.data_shards.preparation.buckets import Buckets
from longplay.data_shards.preparation.names import Names, originals
from longplay.data_shards.preparation.selection import Selection
from longplay.data_shards.preparation.workers import in_order
from longplay.data_shards.readers.sources import MISSING
from longplay.data_shards.storage.features import FeatureInfo

_MAX_VALUES = np.iinfo(np.int32).max


@dataclass(frozen=True)
class Vocabulary:
    """The values of a categorical feature.

    Attributes:
        known: (values,) int64 the values as integers or, for strings, their hashes; ascending.
        codes: (values,) int32 code of each entry of `known`, from 1.
        values: (values,) the values in the order of the codes.
        counts: (values,) int64 number of events with each value, in the order of the codes.
    """

    known: np.ndarray
    codes: np.ndarray
    values: np.ndarray | pl.Series
    counts: np.ndarray

    def encode(self, integers: np.ndarray) -> np.ndarray:
        """Return the (N,) int32 codes of (N,) int64 values or hashes, 0 for a missing value."""
        if not len(self.known):
            return np.zeros(len(integers), np.int32)
        place = np.minimum(np.searchsorted(self.known, integers), len(self.known) - 1)
        return np.where(self.known[place] == integers, self.codes[place], 0).astype(np.int32)


def count_values(
    name: str, buckets: Buckets, selection: Selection, names: Names | None, num_workers: int
) -> Vocabulary:
    """Assign codes to the values of the kept events, by descending number of events, then by value.

    Raises:
        DataError: there are more than 2**31 - 1 values.
    """

    def count(bucket: int) -> tuple[np.ndarray, np.ndarray]:
        values = buckets.feature(name, bucket)[selection.is_kept(buckets, bucket)]
        return np.unique(values[values != MISSING], return_counts=True)

    known, counts = np.empty(0, np.int64), np.empty(0, np.int64)
    for found, times in in_order(count, range(len(buckets)), num_workers):
        merged, place = np.unique(np.concatenate([known, found]), return_inverse=True)
        counts = np.bincount(place, np.concatenate([counts, times]), len(merged)).astype(np.int64)
        known = merged
    if len(known) > _MAX_VALUES:
        raise DataError(f"feature {name!r} has {len(known)} values, more than {_MAX_VALUES}; leave it out")
    ranks = known if names is None else names.ranks(known)
    order = np.lexsort((ranks, -counts))
    codes = np.empty(len(known), np.int32)
    codes[order] = np.arange(1, len(known) + 1)
    return Vocabulary(known, codes, originals(names, ranks[order]), counts[order])


def measure(values: np.ndarray) -> dict[str, Any]:
    """Return the count, mean, sum of squared deviations and range of (N,) float32 values, without NaN."""
    present = values[~np.isnan(values)].astype(np.float64)
    if not len(present):
        return {"count": 0}
    return {
        "count": len(present),
        "mean": float(present.mean()),
        "squares": float(np.square(present - present.mean()).sum()),
        "least": float(present.min()),
        "most": float(present.max()),
    }


def float_info(name: str, parts: list[dict[str, Any]]) -> FeatureInfo:
    """Combine the results of `measure` over all shards, in their order."""
    parts = [part for part in parts if part["count"]]
    if not parts:
        return FeatureInfo(name=name, kind="float")
    total = sum(part["count"] for part in parts)
    mean = sum(part["count"] * part["mean"] for part in parts) / total
    squares = sum(part["squares"] + part["count"] * (part["mean"] - mean) ** 2 for part in parts)
    return FeatureInfo(
        name=name,
        kind="float",
        least=min(part["least"] for part in parts),
        most=max(part["most"] for part in parts),
        mean=mean,
        std=(squares / total) ** 0.5,
    )
