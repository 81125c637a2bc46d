"""Dropout with masks that are a pure function of each row's key. It uses no global generator."""

from typing import Any

import torch
from torch import Tensor, nn

from longplay.models.base.keyed_random import keyed_bits
from longplay.native.tracing import not_traced
from longplay.native.triton_runtime import can_run_triton

_LEVELS = 1 << 16  # thresholds have 16 bits, so that one 64-bit word serves four elements


class KeyedDropout(nn.Module):
    """Zero elements with probability p and divide the others by the keep probability.

    The mask of row b depends only on (dropout_keys[b], layer_id, slot, channel), not on the batch, the rank,
    the device or the length of the row. p is rounded to a multiple of 2^-16.

    Args:
        p: probability of zeroing an element, 0 <= p < 1.
        layer_id: id of this layer; each id in a model has its own masks.

    Raises:
        ValueError: p is not in [0, 1).
    """

    def __init__(self, p: float, layer_id: int) -> None:
        super().__init__()
        if not 0.0 <= p < 1.0:
            raise ValueError(f"dropout={p}: must be at least 0 and below 1")
        self.p = p
        self.layer_id = layer_id
        self._threshold = min(round(p * _LEVELS), _LEVELS - 1)

    def forward(self, x: Tensor, dropout_keys: Tensor | None) -> Tensor:
        """Apply dropout in training mode. Return x itself in eval mode or if p = 0.

        Args:
            x: (B, L, D), any float dtype.
            dropout_keys: (B,) int64, see `keyed_random.row_keys`; unused in eval mode or if p = 0.

        Raises:
            ValueError: dropout is active and `dropout_keys` is None.
        """
        if not self.training or self._threshold == 0:
            return x
        if dropout_keys is None:
            raise ValueError(
                f"dropout_keys=None: training with dropout={self.p} needs one key per row; see row_keys"
            )
        scale = _LEVELS / (_LEVELS - self._threshold)
        if can_run_triton(x.device.type) and x.dtype != torch.float64:
            from longplay.models.base.dropout_kernel import dropout

            return dropout(x, dropout_keys, layer_id=self.layer_id, threshold=self._threshold, scale=scale)
        return _masked_scale(x, self._dropped(dropout_keys, x.shape), scale)

    def extra_repr(self) -> str:
        return f"p={self.p}, layer_id={self.layer_id}"

    def _dropped(self, dropout_keys: Tensor, shape: torch.Size) -> Tensor:
        """Return (B, L, D) bool, True where an element is dropped."""
        num_rows, num_slots, width = shape
        words_per_slot = -(-width // 4)
        words = keyed_bits(dropout_keys, self.layer_id, num_slots * words_per_slot)
        levels = words.view(torch.int16).view(num_rows, num_slots, 4 * words_per_slot)[..., :width]
        return levels < self._threshold - _LEVELS // 2


@not_traced
def _masked_scale(x: Tensor, dropped: Tensor, scale: float) -> Tensor:
    return _MaskedScale.apply(x, dropped, scale)


class _MaskedScale(torch.autograd.Function):
    """Compute x * scale, or 0 where an element is dropped. Save only the bool mask for the backward."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, dropped: Tensor, scale: float) -> Tensor:
        ctx.save_for_backward(dropped)
        ctx.scale = scale
        return x.masked_fill(dropped, 0.0).mul_(scale)

    @staticmethod
    def backward(ctx: Any, *grad_outputs: Tensor) -> tuple[Tensor, None, None]:
        (dropped,) = ctx.saved_tensors
        return grad_outputs[0].masked_fill(dropped, 0.0).mul_(ctx.scale), None, None
