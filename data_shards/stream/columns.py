"""Times and features of events, which a stream delivers with the items on request."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Protocol

import numpy as np
import torch

from longplay.data_shards.storage.features import FeatureInfo
from longplay.data_shards.storage.shard_reader import DecodedShard
from longplay.data_shards.stream.fill_rows import fill_column
from longplay.data_shards.stream.packing import PackedRows


@dataclass(frozen=True, kw_only=True)
class EventColumns:
    """The times and features of events that a stream delivers.

    Attributes:
        features: event features of the dataset.
        times: whether to deliver the times.
    """

    features: tuple[FeatureInfo, ...] = ()
    times: bool = False

    @property
    def names(self) -> tuple[str, ...]:
        """The names of the features."""
        return tuple(feature.name for feature in self.features)

    @property
    def bytes_per_event(self) -> int:
        """Memory of the columns of one event."""
        return 4 * len(self.features) + 8 * self.times


@dataclass(frozen=True)
class Events:
    """The concatenated events of some shards.

    Attributes:
        items: (events,) int32.
        times: (events,) int64; None unless requested.
        features: name -> (events,) int32 codes or float32 values.
    """

    items: np.ndarray
    times: np.ndarray | None
    features: dict[str, np.ndarray]


@dataclass(frozen=True)
class SlotColumns:
    """The requested columns of the slots of packed rows. Padding is 0.

    Attributes:
        times: (B, L) int64; None unless requested.
        features: name -> (B, L) int32 codes or float32 values.
    """

    times: np.ndarray | None
    features: dict[str, np.ndarray]

    @classmethod
    def allocate(cls, columns: EventColumns, shape: tuple[int, int]) -> SlotColumns:
        """Allocate the columns of (B, L) slots, with undefined content."""
        times = np.empty(shape, np.int64) if columns.times else None
        return cls(times, {feature.name: np.empty(shape, feature.dtype) for feature in columns.features})

    def fill(self, part: slice, rows: PackedRows, events: Events) -> None:
        """Overwrite the rows `part` with the events of `rows`."""
        if self.times is not None:
            assert events.times is not None
            fill_column(rows, events.times, self.times[part])
        for name, out in self.features.items():
            fill_column(rows, events.features[name], out[part])

    def tensors(self) -> tuple[dict[str, torch.Tensor], torch.Tensor | None]:
        """Return the features and the times as tensors in the same memory."""
        times = None if self.times is None else torch.from_numpy(self.times)
        return {name: torch.from_numpy(values) for name, values in self.features.items()}, times


class ReadShard(Protocol):
    """`Dataset.shard` or `ShardStore.shard`."""

    def __call__(self, index: int, *, with_times: bool, features: Iterable[str]) -> DecodedShard: ...


def read_events(read_shard: ReadShard, shards: Iterable[int], columns: EventColumns) -> Events:
    """Read shards and concatenate their events.

    Raises:
        DataError: a shard is missing or damaged.
    """
    parts = [read_shard(shard, with_times=columns.times, features=columns.names) for shard in shards]
    times = [part.times for part in parts if part.times is not None]
    features = {name: _joined([part.features[name] for part in parts]) for name in columns.names}
    items = _joined([part.items for part in parts])
    return Events(items, _joined(times) if columns.times else None, features)


def _joined(parts: list[np.ndarray]) -> np.ndarray:
    return np.concatenate(parts) if len(parts) > 1 else parts[0]
