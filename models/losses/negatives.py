"""Negative items by keyed draws: a function of the keys alone, whatever the world size and the batch."""

from functools import cached_property
from typing import Self

import torch
from torch import Tensor

from longplay.models.base.keyed_random import fold_in, keyed_integers, keyed_uniform

_PER_TARGET_STREAM = 1 << 20  # far from the dropout layers' ids, which are streams of the same row keys
_SHARED_STREAM = (1 << 20) + 1


def target_keys(row_keys: Tensor, slots: Tensor) -> Tensor:
    """One key per target, from its row's key and its slot: (V,) int64 and (V,) int64 -> (V,) int64."""
    return fold_in(row_keys, slots)


def uniform_negatives(keys: Tensor, positives: Tensor, num_negatives: int, num_items: int) -> Tensor:
    """Items drawn uniformly from all but each target's own: a draw among num_items - 1, shifted past the
    target.

    Args:
        keys: (V,) int64, see `target_keys`.
        positives: (V,) int64 item ids, 1..num_items.
        num_negatives: K, drawn with replacement.
        num_items: the catalogue's size.

    Returns:
        (V, K) int64 item ids in 1..num_items.

    Raises:
        ValueError: if there are fewer than two items.
    """
    if num_items < 2:
        raise ValueError(f"num_items={num_items}: negatives need at least 2 items")
    drawn = keyed_integers(keys, _PER_TARGET_STREAM, num_negatives, num_items - 1).add_(1)
    return drawn.add_(drawn >= positives.unsqueeze(1))


class SharedNegatives:
    """Draws of items for a whole batch, uniform or in proportion to count ** alpha, and their log q.

    Args:
        num_items: the catalogue's size; items are 1..num_items.
        cumulative: (num_items,) float64, the running sum of the items' weights; None = uniform.
    """

    def __init__(self, num_items: int, cumulative: Tensor | None = None) -> None:
        if num_items < 1:
            raise ValueError(f"num_items={num_items}: must be at least 1")
        self.num_items = num_items
        self._cumulative = cumulative

    @classmethod
    def by_frequency(cls, counts: Tensor, alpha: float) -> Self:
        """Draws in proportion to counts ** alpha.

        Args:
            counts: (num_items,) of any dtype, the events of items 1..num_items; alpha=1 is also how often an
                item is an in-batch negative.
            alpha: 0 to 1.

        Raises:
            ValueError: if a count is negative or all are 0.
        """
        if counts.numel() == 0 or bool((counts < 0).any()) or not bool((counts > 0).any()):
            raise ValueError(f"counts of {counts.numel()} items: must be 0 or more, and some above 0")
        weights = torch.where(counts > 0, counts.double() ** alpha, 0.0)
        return cls(counts.numel(), weights.cumsum(0))

    def to(self, device: torch.device) -> Self:
        """The same distribution on another device."""
        cumulative = None if self._cumulative is None else self._cumulative.to(device)
        return type(self)(self.num_items, cumulative)

    def draw(self, key: Tensor, num_negatives: int) -> Tensor:
        """(M,) int64 item ids, with replacement, from one key (1,) int64; draw i does not depend on M."""
        if self._cumulative is None:
            return keyed_integers(key, _SHARED_STREAM, num_negatives, self.num_items).squeeze(0) + 1
        points = keyed_uniform(key, _SHARED_STREAM, num_negatives).squeeze(0) * self._cumulative[-1]
        last = torch.searchsorted(self._cumulative, self._cumulative[-1:])  # the last item that has weight
        return torch.searchsorted(self._cumulative, points, right=True).clamp_(max=last) + 1

    def log_q(self, item_ids: Tensor) -> Tensor:
        """The log of each item's draw probability: item_ids int64 of any shape -> float32 of that shape.

        An item that is never drawn, having no events, is taken as having the smallest weight that occurs.
        """
        if self._cumulative is None:
            return torch.full(item_ids.shape, 1.0 / self.num_items, device=item_ids.device).log_()
        weights = self._weight(item_ids)
        return (torch.where(weights > 0, weights, self._smallest_weight) / self._cumulative[-1]).log().float()

    def _weight(self, item_ids: Tensor) -> Tensor:
        assert self._cumulative is not None
        before = torch.where(item_ids > 1, self._cumulative[(item_ids - 2).clamp(min=0)], 0.0)
        return self._cumulative[item_ids - 1] - before

    @cached_property
    def _smallest_weight(self) -> Tensor:
        assert self._cumulative is not None
        weights = torch.diff(self._cumulative, prepend=self._cumulative.new_zeros(1))
        return torch.where(weights > 0, weights, torch.inf).min()
