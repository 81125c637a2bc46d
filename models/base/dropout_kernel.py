"""Keyed dropout in one Triton kernel, with the same masks as `KeyedDropout`. Importing it needs Triton.

The backward computes the mask again, so that no mask is saved.
"""

from typing import Any

import torch
import triton  # pyright: ignore[reportMissingImports] -- optional
import triton.language as tl  # pyright: ignore[reportMissingImports] -- optional
from torch import Tensor
from torch.autograd.function import once_differentiable

from longplay.models.base.keyed_random_kernels import keyed_word, load_keys

_BLOCK = 1024  # elements per program


@triton.jit(do_not_specialize=["num_elements", "row_elements"])
def _dropout(
    x,
    keys,
    out,
    num_elements,
    row_elements,
    scale,
    LAYER: tl.constexpr,
    THRESHOLD: tl.constexpr,
    WIDTH: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """Zero the elements whose 16-bit level is below THRESHOLD, and multiply the others by `scale`."""
    at = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    mask = at < num_elements
    key = keyed_word(load_keys(keys, at // row_elements, mask), tl.full((BLOCK,), LAYER, tl.uint64))
    within = at % row_elements
    slot, column = within // WIDTH, within % WIDTH
    bits = keyed_word(key, (slot * ((WIDTH + 3) // 4) + column // 4).to(tl.uint64))
    # The levels are compared as signed 16-bit numbers: 0x8000 is the lowest.
    level = ((bits >> (16 * (column % 4)).to(tl.uint64)) ^ 0x8000) & 0xFFFF
    value = tl.load(x + at, mask=mask, other=0.0).to(tl.float32)
    kept = tl.where(level.to(tl.int32) < THRESHOLD, 0.0, value * scale)
    tl.store(out + at, kept.to(out.dtype.element_ty), mask=mask)


def dropout(x: Tensor, keys: Tensor, *, layer_id: int, threshold: int, scale: float) -> Tensor:
    """Apply `KeyedDropout`.

    Args:
        x: (B, L, D) float32 or bfloat16.
        keys: (B,) int64.
        layer_id: id of the layer.
        threshold: an element is dropped if its level, of 2^16, is below it.
        scale: factor on the other elements.
    """
    return _KernelDropout.apply(x, keys, layer_id, threshold, scale)


class _KernelDropout(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, keys: Tensor, layer_id: int, threshold: int, scale: float) -> Tensor:
        ctx.save_for_backward(keys)
        ctx.settings = layer_id, threshold, scale
        return _launch(x, keys, layer_id, threshold, scale)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grad_outputs: Tensor) -> tuple[Tensor | None, ...]:
        return _launch(grad_outputs[0], *ctx.saved_tensors, *ctx.settings), None, None, None, None


def _launch(x: Tensor, keys: Tensor, layer_id: int, threshold: int, scale: float) -> Tensor:
    x = x.contiguous()
    out = torch.empty_like(x)
    if x.numel():
        _dropout[-(-x.numel() // _BLOCK),](
            *(x, keys, out, x.numel(), x.shape[1] * x.shape[2], scale),
            LAYER=layer_id,
            THRESHOLD=threshold,
            WIDTH=x.shape[2],
            BLOCK=_BLOCK,
        )
    return out
