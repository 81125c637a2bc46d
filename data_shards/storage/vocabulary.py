"""Map original item ids to the item ids that models use, and back."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from longplay.data_shards.errors import DataError
from longplay.data_shards.storage.id_column import IdColumn
from longplay.data_shards.storage.item_columns import ItemColumns


@dataclass(frozen=True, eq=False)
class ItemVocabulary:
    """The items of a dataset. Item ids start at 1; 0 is padding and stands for an unknown item.

    Attributes:
        original_ids: (items,) integers or strings; entry i belongs to item id i + 1.
        counts: (items,) int64 number of events of each item in the whole dataset, in descending order.
        columns: the other columns of the items, such as titles.
    """

    original_ids: IdColumn
    counts: np.ndarray
    columns: ItemColumns

    def __len__(self) -> int:
        return len(self.original_ids)

    def item_ids(self, original_ids: Any) -> np.ndarray:
        """Return the (N,) int64 item ids of (N,) original ids; 0 for an item that is not in the dataset.

        Raises:
            ValueError: the original ids are not a list or array of the dataset's type of ids.
        """
        return self.original_ids.find(self.original_ids.typed(original_ids)) + 1

    def originals(self, item_ids: np.ndarray) -> np.ndarray:
        """Return the (N,) original ids of (N,) item ids: int64, or `str` objects.

        Raises:
            DataError: an item id is outside 1..len(self).
        """
        item_ids = np.asarray(item_ids, np.int64)
        outside = item_ids[(item_ids < 1) | (item_ids > len(self))]
        if len(outside):
            raise DataError(f"item id {outside[0]} is outside 1..{len(self)}; pass ids of this dataset")
        return self.original_ids.take(item_ids - 1)
