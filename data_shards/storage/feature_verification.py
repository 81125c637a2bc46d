"""Check the features of a prepared dataset against the manifest and the vocabularies."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl

from longplay.data_shards.storage.features import FeatureInfo, vocabulary_name
from longplay.data_shards.storage.manifest import MANIFEST_NAME
from longplay.data_shards.storage.parquet_tables import read_table

_TOLERANCE = 1e-6
"""Of the mean and the standard deviation, relative to the largest absolute value."""


class FeatureCheck:
    """Adds up the values of one feature over the shards.

    Args:
        info: the feature's entry in the manifest.
    """

    def __init__(self, info: FeatureInfo) -> None:
        self.info = info
        self._counts = np.zeros((info.num_values or 0) + 1, np.int64)
        self._num, self._sum, self._sum_sq = 0, 0.0, 0.0
        self._least, self._most = np.inf, -np.inf

    def add(self, values: np.ndarray) -> str | None:
        """Add (events,) values of a shard. Return what is wrong with them, or None."""
        problem = self.info.problem(values)
        if problem is not None:
            return problem
        if self.info.kind == "categorical":
            codes, counts = np.unique_counts(values)
            self._counts[codes] += counts
            return None
        present = values[~np.isnan(values)].astype(np.float64)
        if len(present):
            self._num += len(present)
            self._sum, self._sum_sq = self._sum + present.sum(), self._sum_sq + (present**2).sum()
            self._least, self._most = min(self._least, present.min()), max(self._most, present.max())
        return None

    def problems(self, folder: Path) -> Iterator[str]:
        """Compare the totals of all shards with the vocabulary, or with the manifest."""
        if self.info.kind == "categorical":
            yield from self._vocabulary_problems(folder)
            return
        info, found = self.info, None
        expected = (info.least, info.most, info.mean, info.std)
        if self._num:
            mean = self._sum / self._num
            std = float(np.sqrt(max(0.0, self._sum_sq / self._num - mean**2)))
            found = (float(self._least), float(self._most), mean, std)
        scale = max(abs(self._least), abs(self._most)) if self._num else 0.0
        exact = expected[:2] == (None, None) if found is None else found[:2] == expected[:2]
        if not exact or (found is not None and not _near(found[2:], expected[2:], scale)):
            yield (
                f"{MANIFEST_NAME}: least, most, mean and std of feature {info.name} are {expected}, "
                f"but the shards have {found or 'no value'}"
            )

    def _vocabulary_problems(self, folder: Path) -> Iterator[str]:
        name = vocabulary_name(self.info.name)
        try:
            table = read_table(folder / name, ["value", "count"])
        except FileNotFoundError:
            yield f"{name}: is missing"
            return
        except (OSError, pl.exceptions.PolarsError) as error:
            yield f"{name}: cannot be read ({str(error).splitlines()[0]})"
            return
        if table["value"].dtype not in (pl.String, pl.Int64) or table["count"].dtype != pl.Int64:
            yield f"{name}: value is not String or Int64, or count is not Int64"
        elif table["value"].null_count() or table["value"].n_unique() != len(table):
            yield f"{name}: a value is null or occurs twice"
        elif len(table) != self.info.num_values:
            yield f"{name}: has {len(table)} values, expected {self.info.num_values}"
        elif not np.array_equal(table["count"].to_numpy(), self._counts[1:]):
            code = 1 + int(np.argmax(table["count"].to_numpy() != self._counts[1:]))
            yield (
                f"{name}: count of code {code} is {table['count'][code - 1]}, "
                f"but the shards have {self._counts[code]}"
            )
        elif (np.diff(self._counts[1:]) > 0).any():
            yield f"{name}: counts are not descending"


def read_vocabularies(folder: Path, features: Iterable[FeatureInfo]) -> dict[str, list[Any]] | None:
    """Return the values of each categorical feature by code, or None if a file cannot be read."""
    found = {}
    for feature in features:
        if feature.kind == "categorical":
            try:
                table = read_table(folder / vocabulary_name(feature.name), ["value"])
            except (OSError, pl.exceptions.PolarsError):
                return None
            found[feature.name] = table["value"].to_list()
    return found


def _near(found: tuple[float, ...], expected: tuple[float | None, ...], scale: float) -> bool:
    return all(
        other is not None and abs(one - other) <= _TOLERANCE * scale
        for one, other in zip(found, expected, strict=True)
    )
