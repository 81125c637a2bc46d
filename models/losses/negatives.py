"""Negative items by keyed draws: they depend on the keys alone, not on the world size or the batch."""

from collections.abc import Callable
from functools import cached_property
from typing import Self

import torch
from torch import Tensor

from longplay.models.base.keyed_random import fold_in, keyed_integers, keyed_uniform
from longplay.models.losses.base import LossConfig

_PER_TARGET_STREAM = 1 << 20  # above the ids of dropout layers, which are streams of the same row keys
_SHARED_STREAM = (1 << 20) + 1


def target_keys(row_keys: Tensor, slots: Tensor) -> Tensor:
    """Derive each target's key (V,) int64 from its row's key (V,) int64 and its slot (V,) int64."""
    return fold_in(row_keys, slots)


def uniform_negatives(keys: Tensor, positives: Tensor, num_negatives: int, num_items: int) -> Tensor:
    """Draw items uniformly from all items except each target's own.

    Args:
        keys: (V,) int64, see `target_keys`.
        positives: (V,) int64 item ids in 1..num_items.
        num_negatives: K, drawn with replacement.
        num_items: size of the catalogue.

    Returns:
        (V, K) int64 item ids in 1..num_items.

    Raises:
        ValueError: there are fewer than two items.
    """
    if num_items < 2:
        raise ValueError(f"num_items={num_items}: negatives need at least 2 items")
    # Drawn from one item fewer; draws at or above the target move up by one.
    drawn = keyed_integers(keys, _PER_TARGET_STREAM, num_negatives, num_items - 1).add_(1)
    return drawn.add_(drawn >= positives.unsqueeze(1))


class SharedNegatives:
    """A distribution over items from which a whole batch draws its negatives, and its log q.

    Args:
        num_items: size of the catalogue; items are 1..num_items.
        cumulative: (num_items,) float64, cumulative sum of the items' weights; None for the uniform
            distribution.
    """

    def __init__(self, num_items: int, cumulative: Tensor | None = None) -> None:
        if num_items < 1:
            raise ValueError(f"num_items={num_items}: must be at least 1")
        self.num_items = num_items
        self._cumulative = cumulative

    @classmethod
    def by_frequency(cls, counts: Tensor, alpha: float) -> Self:
        """Weight items by counts ** alpha.

        Args:
            counts: (num_items,) of any dtype, number of events of items 1..num_items.
            alpha: from 0 to 1. With 1 an item's weight is how often it occurs in a batch.

        Raises:
            ValueError: a count is negative, or all are 0.
        """
        if counts.numel() == 0 or bool((counts < 0).any()) or not bool((counts > 0).any()):
            raise ValueError(f"counts of {counts.numel()} items: must be 0 or more, and some above 0")
        weights = torch.where(counts > 0, counts.double() ** alpha, 0.0)
        return cls(counts.numel(), weights.cumsum(0))

    def to(self, device: torch.device) -> Self:
        """Copy the distribution to `device`."""
        cumulative = None if self._cumulative is None else self._cumulative.to(device)
        return type(self)(self.num_items, cumulative)

    def draw(self, key: Tensor, num_negatives: int) -> Tensor:
        """Draw M = num_negatives item ids with replacement; draw i does not depend on M.

        Args:
            key: (1,) int64.

        Returns:
            (M,) int64 item ids.
        """
        if self._cumulative is None:
            return keyed_integers(key, _SHARED_STREAM, num_negatives, self.num_items).squeeze(0) + 1
        points = keyed_uniform(key, _SHARED_STREAM, num_negatives).squeeze(0) * self._cumulative[-1]
        last = torch.searchsorted(self._cumulative, self._cumulative[-1:])  # the last item with a weight
        return torch.searchsorted(self._cumulative, points, right=True).clamp_(max=last) + 1

    def log_q(self, item_ids: Tensor) -> Tensor:
        """Return the log of each item's draw probability, float32 of the shape of `item_ids` (int64).

        An item without events is never drawn; it gets the smallest weight of the drawn items.
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


def shared_negatives(
    config: LossConfig, num_items: int, item_counts: Callable[[], Tensor]
) -> SharedNegatives:
    """Build the distribution that `config` draws shared negatives from.

    In-batch negatives are items of the batch itself; their distribution only gives log q.

    Args:
        item_counts: returns (num_items,) counts in the training split; called only if they are needed.
    """
    if not config.draws_by_count:
        return SharedNegatives(num_items)
    alpha = 1.0 if config.negatives == "in_batch" else config.frequency_alpha
    return SharedNegatives.by_frequency(item_counts(), alpha)
