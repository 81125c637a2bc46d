"""Sampling of negatives. Draws depend only on keys, not on the world size or the batch."""

from collections.abc import Callable
from functools import cached_property
from typing import Self

import torch
from torch import Tensor

from longplay.models.base.keyed_random import fold_in, keyed_integers, keyed_uniform
from longplay.models.losses.base import LossConfig
from longplay.native.triton_runtime import can_run_triton

_PER_TARGET_STREAM = 1 << 20  # above all dropout layer ids, which are streams of the same row keys
_SHARED_STREAM = (1 << 20) + 1


def uniform_negatives(
    row_keys: Tensor, slots: Tensor, positives: Tensor, *, length: int, num_negatives: int, num_items: int
) -> Tensor:
    """Draw K negatives per target, uniformly from all other items.

    A target's negatives depend only on the key of its row and on its slot.

    Args:
        row_keys: (B,) int64, see `keyed_random.row_keys`.
        slots: (V,) int64, flat slot b * L + t of each target.
        positives: (V,) int64 item ids in 1..num_items.
        length: slots L of a row.
        num_negatives: K. Items are drawn with replacement.
        num_items: size of the catalog.

    Returns:
        (V, K) int64 item ids in 1..num_items.

    Raises:
        ValueError: `num_items` is less than 2.
    """
    if num_items < 2:
        raise ValueError(f"num_items={num_items}: must be at least 2 to draw negatives")
    if can_run_triton(slots.device.type):
        from longplay.models.losses.negatives_kernel import draw_negatives

        sizes = {"length": length, "num_negatives": num_negatives, "num_items": num_items}
        return draw_negatives(row_keys, slots, positives, stream=_PER_TARGET_STREAM, **sizes)
    keys = fold_in(row_keys[slots // length], slots % length)
    # Draw from num_items - 1 values, then shift those at or above the target by one to skip it.
    drawn = keyed_integers(keys, _PER_TARGET_STREAM, num_negatives, num_items - 1).add_(1)
    return drawn.add_(drawn >= positives.unsqueeze(1))


class SharedNegatives:
    """Item distribution of the negatives shared by a global batch.

    Args:
        num_items: size of the catalog; item ids are 1..num_items.
        cumulative: (num_items,) float64, cumulative sum of the items' weights; None = uniform.

    Raises:
        ValueError: `num_items` is less than 1.
    """

    def __init__(self, num_items: int, cumulative: Tensor | None = None) -> None:
        if num_items < 1:
            raise ValueError(f"num_items={num_items}: must be at least 1")
        self.num_items = num_items
        self._cumulative = cumulative

    @classmethod
    def by_frequency(cls, counts: Tensor, alpha: float) -> Self:
        """Weight each item by count ** alpha. Items without events are never drawn.

        Args:
            counts: (num_items,) of any dtype, number of events of items 1..num_items.
            alpha: exponent in [0, 1]. With 1, weights are proportional to counts.

        Raises:
            ValueError: a count is negative, or all counts are 0.
        """
        if counts.numel() == 0 or bool((counts < 0).any()) or not bool((counts > 0).any()):
            raise ValueError(
                f"counts of {counts.numel()} items: must be non-negative, with at least one above 0"
            )
        weights = torch.where(counts > 0, counts.double() ** alpha, 0.0)
        return cls(counts.numel(), weights.cumsum(0))

    def to(self, device: torch.device) -> Self:
        """Return the distribution on `device`."""
        cumulative = None if self._cumulative is None else self._cumulative.to(device)
        return type(self)(self.num_items, cumulative)

    def draw(self, key: Tensor, num_negatives: int) -> Tensor:
        """Draw M item ids with replacement. Draw i does not depend on M.

        Args:
            key: (1,) int64.
            num_negatives: M.

        Returns:
            (M,) int64 item ids.
        """
        if self._cumulative is None:
            return keyed_integers(key, _SHARED_STREAM, num_negatives, self.num_items).squeeze(0) + 1
        points = keyed_uniform(key, _SHARED_STREAM, num_negatives).squeeze(0) * self._cumulative[-1]
        # A point may be rounded up to the total; then take the last item with a positive weight.
        last = torch.searchsorted(self._cumulative, self._cumulative[-1:])
        return torch.searchsorted(self._cumulative, points, right=True).clamp_(max=last) + 1

    def log_q(self, item_ids: Tensor) -> Tensor:
        """Return the log probability of each item.

        Items without events are never drawn; they get the smallest positive probability.

        Args:
            item_ids: int64, any shape.

        Returns:
            float32 of the same shape.
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
    """Build the distribution of the shared negatives that `config` selects.

    In-batch negatives are not drawn from it: it only provides their log probabilities.

    Args:
        config: settings of the loss.
        num_items: size of the catalog.
        item_counts: returns the (num_items,) counts of the training split; called only if needed.
    """
    if not config.draws_by_count:
        return SharedNegatives(num_items)
    alpha = 1.0 if config.negatives == "in_batch" else config.frequency_alpha
    return SharedNegatives.by_frequency(item_counts(), alpha)
