"""Events -> sequences: users with their events in time order, items renumbered by frequency."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import polars as pl

from longplay.data_shards.errors import DataError

USER_TOO_SHORT = "user_too_short"


@dataclass(frozen=True)
class Sequences:
    """All sequences, one after the other, users by rising original id.

    Attributes:
        items: (events,) int32 item ids, from 1, numbered by falling frequency, ties by original id.
        times: (events,) int64, not falling within a user.
        ptr: (users + 1,) int64, where each user's events begin.
        user_original_ids: (users,) int64.
        item_original_ids, item_counts: (items,) int64; entry i belongs to item id i + 1.
    """

    items: np.ndarray
    times: np.ndarray
    ptr: np.ndarray
    user_original_ids: np.ndarray
    item_original_ids: np.ndarray
    item_counts: np.ndarray

    @property
    def lengths(self) -> np.ndarray:
        """(users,) events per user."""
        return np.diff(self.ptr)


def build_sequences(events: pl.DataFrame, min_user_events: int) -> tuple[Sequences, dict[str, int]]:
    """Sorts events by (user, time, place in the source), drops short users, renumbers the items.

    Args:
        events: `user`, `item`, `time` Int64 in source order.

    Returns:
        The sequences, and rows dropped by reason.

    Raises:
        DataError: no user has `min_user_events` events.
    """
    enough = events.filter(pl.len().over("user") >= min_user_events)
    num_short = events.height - enough.height
    if enough.is_empty():
        longest = events.group_by("user").len()["len"].max() if events.height else 0
        raise DataError(
            f"nothing left: no user has {min_user_events} of the {events.height} usable events (the longest "
            f"has {longest}); lower --min-user-events (2 at least), or check that --user names the user"
        )
    items = enough.group_by("item").len("count").sort(["count", "item"], descending=[True, False])
    items = items.with_columns(item_id=pl.int_range(1, pl.len() + 1, dtype=pl.Int32))
    numbered = enough.join(items.select("item", "item_id"), on="item", how="left", maintain_order="left")
    numbered = numbered.select("user", "time", "item_id").sort(["user", "time"], maintain_order=True)
    users, lengths = np.unique_counts(numbered["user"].to_numpy())
    sequences = Sequences(
        items=numbered["item_id"].to_numpy(),
        times=numbered["time"].to_numpy(),
        ptr=np.concatenate([[0], np.cumsum(lengths)]),
        user_original_ids=users,
        item_original_ids=items["item"].to_numpy(),
        item_counts=items["count"].cast(pl.Int64).to_numpy(),
    )
    return sequences, {USER_TOO_SHORT: num_short} if num_short else {}
