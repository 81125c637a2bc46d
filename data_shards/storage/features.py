"""Event features: columns of a dataset's events besides user, item and time.

A categorical feature is a column of codes: 1..num_values in descending order of events, 0 = missing. Its
values are the rows of `feature-NAME.parquet` (`value`: string or int64, `count`: int64), in the order of the
codes. A float feature is a column of float32 values, NaN = missing.
"""

from __future__ import annotations

import math
import re
from dataclasses import dataclass
from typing import Literal

import numpy as np

Kind = Literal["categorical", "float"]
FEATURE_NAME = re.compile(r"[a-z][a-z0-9_]*")
DTYPES: dict[Kind, np.dtype] = {"categorical": np.dtype("<i4"), "float": np.dtype("<f4")}
"""The dtype of a feature in the shards."""


@dataclass(frozen=True, kw_only=True)
class FeatureInfo:
    """A feature's entry in the manifest.

    Attributes:
        name: lower-case letters, digits and underscores; starts with a letter.
        kind: `categorical` or `float`.
        num_values: number of distinct values of a categorical feature, without missing; None for a float.
        least, most, mean, std: of a float feature's float32 values, without the missing ones; `std` divides
            by their number. All None for a categorical feature, or if every value is missing.
    """

    name: str
    kind: Kind
    num_values: int | None = None
    least: float | None = None
    most: float | None = None
    mean: float | None = None
    std: float | None = None

    def __post_init__(self) -> None:
        if not isinstance(self.name, str) or not FEATURE_NAME.fullmatch(self.name):
            raise ValueError(f"feature {self.name!r}: a name matches {FEATURE_NAME.pattern}")
        if self.kind not in DTYPES:
            raise ValueError(f"feature {self.name}: kind is {self.kind!r}, not categorical or float")
        is_count = type(self.num_values) is int and 0 <= self.num_values <= np.iinfo(np.int32).max
        if is_count != (self.kind == "categorical") or (self.kind == "float" and self.num_values is not None):
            raise ValueError(f"feature {self.name}: {self.kind}, but num_values is {self.num_values!r}")
        numbers = (self.least, self.most, self.mean, self.std)
        given = [number for number in numbers if number is not None]
        if given and (self.kind == "categorical" or len(given) < len(numbers)):
            raise ValueError(f"feature {self.name}: {self.kind}, but least, most, mean, std are {numbers}")
        if not all(type(number) in (int, float) and math.isfinite(number) for number in given):
            raise ValueError(f"feature {self.name}: least, most, mean, std are {numbers}")

    @property
    def dtype(self) -> np.dtype:
        """The dtype of the feature's values in a shard."""
        return DTYPES[self.kind]

    def missing(self, count: int) -> np.ndarray:
        """Return (count,) missing values."""
        return np.full(count, 0 if self.kind == "categorical" else np.nan, self.dtype)

    def count_missing(self, values: np.ndarray) -> int:
        """Return the number of missing values among (events,) values."""
        absent = values == 0 if self.kind == "categorical" else np.isnan(values)
        return int(np.count_nonzero(absent))

    def problem(self, values: np.ndarray) -> str | None:
        """Return what is wrong with (events,) values of the feature, or None."""
        if values.dtype != self.dtype or values.ndim != 1:
            return f"feature {self.name} is {values.dtype} {values.shape}, expected {self.dtype}"
        if not len(values):
            return None
        if self.kind == "float":
            return f"feature {self.name} contains infinities" if np.isinf(values).any() else None
        assert self.num_values is not None
        outside = values.min() < 0 or values.max() > self.num_values
        return f"feature {self.name} has codes outside 0..{self.num_values}" if outside else None


def member_name(feature: str) -> str:
    """Return the name of a feature's member in a shard."""
    return f"feature-{feature}.npy"


def vocabulary_name(feature: str) -> str:
    """Return the name of the file with a categorical feature's values."""
    return f"feature-{feature}.parquet"
