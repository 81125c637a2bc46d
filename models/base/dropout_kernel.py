"""Keyed dropout in one Triton kernel, with the same masks as `KeyedDropout`. Importing it needs Triton.

The backward computes the mask again, so that no mask is saved.
"""

# pyright: reportArgumentType=false, reportAttributeAccessIssue=false, reportCallIssue=false
# pyright: reportIncompatibleMethodOverride=false, reportOperatorIssue=false
# Triton's types do not show what a kernel computes with.

from typing import Any

import torch
import triton  # pyright: ignore[reportMissingImports] -- optional
import triton.language as tl  # pyright: ignore[reportMissingImports] -- optional
from torch import Tensor
from torch.autograd.function import once_differentiable

from longplay.models.base.keyed_random_kernels import keyed_word, load_keys
from longplay.native.tracing import not_traced

_WORDS = 256  # words of random bits per program; each serves four elements


@triton.jit(do_not_specialize=["num_words", "row_words"])
def _dropout(
    x,
    keys,
    out,
    num_words,
    row_words,
    scale,
    LAYER: tl.constexpr,
    THRESHOLD: tl.constexpr,
    WIDTH: tl.constexpr,
    WORDS: tl.constexpr,
):
    """Zero the elements whose 16-bit level is below THRESHOLD, and multiply the others by `scale`."""
    PER_SLOT: tl.constexpr = (WIDTH + 3) // 4
    at = tl.program_id(0).to(tl.int64) * WORDS + tl.arange(0, WORDS)
    mask = at < num_words
    key = keyed_word(load_keys(keys, at // row_words, mask), tl.full((WORDS,), LAYER, tl.uint64))
    bits = keyed_word(key, (at % row_words).to(tl.uint64))
    quarter = tl.arange(0, 4)
    # The levels are compared as signed 16-bit numbers: 0x8000 is the lowest.
    level = ((bits[:, None] >> (16 * quarter).to(tl.uint64)[None, :]) ^ 0x8000) & 0xFFFF
    column = (at % PER_SLOT * 4)[:, None] + quarter[None, :]
    element = (at // PER_SLOT * WIDTH)[:, None] + column
    inside = mask[:, None] & (column < WIDTH)
    value = tl.load(x + element, mask=inside, other=0.0).to(tl.float32)
    kept = tl.where(level.to(tl.int32) < THRESHOLD, 0.0, value * scale)
    tl.store(out + element, kept.to(out.dtype.element_ty), mask=inside)


@not_traced
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
    num_rows, num_slots, width = x.shape
    row_words = num_slots * -(-width // 4)
    if x.numel():
        _dropout[-(-num_rows * row_words // _WORDS),](
            *(x, keys, out, num_rows * row_words, row_words, scale),
            LAYER=layer_id,
            THRESHOLD=threshold,
            WIDTH=width,
            WORDS=_WORDS,
        )
    return out
