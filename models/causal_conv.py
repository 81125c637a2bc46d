"""Depthwise causal convolution followed by SiLU, in which no tap reaches over a segment's start."""

from functools import cache
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from longplay.models.segments import SegmentLayout


def causal_conv_silu(x: Tensor, weight: Tensor, bias: Tensor, layout: SegmentLayout) -> Tensor:
    """silu(bias + sum_k weight[:, k] * x shifted by K - 1 - k slots within its segment).

    Args:
        x: (B, L, E), any float dtype.
        weight: (E, K), tap K - 1 being the current slot, as in a causal nn.Conv1d.
        bias: (E,).
        layout: the segments of the rows.

    Returns:
        (B, L, E), of x's dtype.
    """
    kernel = _kernel() if x.is_cuda and x.shape[2] % 8 == 0 and 2 <= weight.shape[1] <= 4 else None
    if kernel is None:
        return F.silu(_SegmentConv.apply(x, weight, bias, layout))
    seq_idx = layout.seq_idx.to(torch.int32).contiguous()
    channel_last = x.contiguous().transpose(1, 2)
    return kernel(channel_last, weight, bias, seq_idx=seq_idx, activation="silu").transpose(1, 2)


def causal_conv_step(x_t: Tensor, weight: Tensor, bias: Tensor, window: Tensor) -> tuple[Tensor, Tensor]:
    """One slot of `causal_conv_silu`.

    Args:
        x_t: (B, E), the new slot's input.
        weight: (E, K).
        bias: (E,).
        window: (B, K - 1, E), the segment's last inputs, oldest first, 0 before its start.

    Returns:
        (B, E), the slot's output, and (B, K - 1, E), the new window.
    """
    window = torch.cat([window, x_t.unsqueeze(1)], dim=1)
    return F.silu((window * weight.t()).sum(1) + bias), window[:, 1:]


class _SegmentConv(torch.autograd.Function):
    """The convolution by shifted, masked multiply-adds: no unfolding, no transposition."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor, layout: SegmentLayout) -> Tensor:
        num_taps, num_slots = weight.shape[1], x.shape[1]
        masks = [layout.same_segment(shift, x.dtype) for shift in range(1, min(num_taps, num_slots))]
        out = torch.addcmul(bias, x, weight[:, -1])
        for shift, mask in enumerate(masks, start=1):
            out[:, shift:].addcmul_(x[:, :-shift] * mask, weight[:, -1 - shift])
        ctx.save_for_backward(x, weight, *masks)
        return out

    @staticmethod
    def backward(ctx: Any, *grad_outputs: Tensor) -> tuple[Tensor, Tensor, Tensor, None]:
        x, weight, *masks = ctx.saved_tensors
        grad = grad_outputs[0]
        grad_x = grad * weight[:, -1]
        grad_weight = torch.zeros_like(weight)
        grad_weight[:, -1] = (grad * x).sum((0, 1))
        for shift, mask in enumerate(masks, start=1):
            reached = grad[:, shift:] * mask
            grad_x[:, :-shift].addcmul_(reached, weight[:, -1 - shift])
            grad_weight[:, -1 - shift] = reached.mul_(x[:, :-shift]).sum((0, 1))
        return grad_x, grad_weight, grad.sum((0, 1)), None


@cache
def _kernel() -> Any | None:
    """causal-conv1d's kernel, or None where it cannot be imported."""
    try:
        from causal_conv1d import causal_conv1d_fn  # pyright: ignore[reportMissingImports] -- optional
    except ImportError:
        return None
    return causal_conv1d_fn
