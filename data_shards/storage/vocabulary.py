"""Map original item ids to the item ids that models use, and back."""

from __future__ import annotations

import functools
from dataclasses import dataclass

import numpy as np

from longplay.data_shards.errors import DataError


@dataclass(frozen=True)
class ItemVocabulary:
    """The items of a dataset. Item ids start at 1; 0 is padding and stands for an unknown item.

    Attributes:
        original_ids: (items,) int64; entry i belongs to item id i + 1.
        counts: (items,) int64 number of events of each item in the whole dataset, in descending order.
    """

    original_ids: np.ndarray
    counts: np.ndarray

    @functools.cached_property
    def _order(self) -> np.ndarray:
        return np.argsort(self.original_ids, kind="stable")

    def __len__(self) -> int:
        return len(self.original_ids)

    def item_ids(self, original_ids: np.ndarray) -> np.ndarray:
        """Return the (N,) int64 item ids of (N,) original ids; 0 for an item that is not in the dataset."""
        original_ids = np.asarray(original_ids, np.int64)
        at = np.searchsorted(self.original_ids, original_ids, sorter=self._order)
        candidate = self._order[np.minimum(at, len(self) - 1)]
        return np.where(self.original_ids[candidate] == original_ids, candidate + 1, 0)

    def originals(self, item_ids: np.ndarray) -> np.ndarray:
        """Return the (N,) int64 original ids of (N,) item ids.

        Raises:
            DataError: an item id is outside 1..len(self).
        """
        item_ids = np.asarray(item_ids, np.int64)
        outside = item_ids[(item_ids < 1) | (item_ids > len(self))]
        if len(outside):
            raise DataError(f"item id {outside[0]} is outside 1..{len(self)}; pass ids of this dataset")
        return self.original_ids[item_ids - 1]
