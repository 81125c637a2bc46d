"""`uniform_negatives` in one Triton kernel, with the same draws. Importing it needs Triton."""

# pyright: reportArgumentType=false, reportAttributeAccessIssue=false, reportCallIssue=false
# pyright: reportIncompatibleMethodOverride=false, reportOperatorIssue=false
# Triton's types do not show what a kernel computes with.

import torch
import triton  # pyright: ignore[reportMissingImports] -- optional
import triton.language as tl  # pyright: ignore[reportMissingImports] -- optional
from torch import Tensor

from longplay.models.base.keyed_random_kernels import keyed_word, load_keys

_BLOCK = 512  # negatives per program


@triton.jit(do_not_specialize=["num_drawn", "length", "num_items"])
def _draw(
    row_keys,
    slots,
    positives,
    out,
    num_drawn,
    length,
    num_items,
    K: tl.constexpr,
    STREAM: tl.constexpr,
    BLOCK: tl.constexpr,
):
    at = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    mask = at < num_drawn
    slot = tl.load(slots + at // K, mask=mask, other=0)
    positive = tl.load(positives + at // K, mask=mask, other=0)
    key = keyed_word(load_keys(row_keys, slot // length, mask), (slot % length).to(tl.uint64))
    key = keyed_word(key, tl.full((BLOCK,), STREAM, tl.uint64))
    bits = keyed_word(key, (at % K).to(tl.uint64))
    # Draw from num_items - 1 values, then shift those at or above the target by one to skip it.
    drawn = (bits & 0x7FFF_FFFF_FFFF_FFFF).to(tl.int64) % (num_items - 1) + 1
    tl.store(out + at, drawn + (drawn >= positive).to(tl.int64), mask=mask)


def draw_negatives(
    row_keys: Tensor,
    slots: Tensor,
    positives: Tensor,
    *,
    length: int,
    num_negatives: int,
    num_items: int,
    stream: int,
) -> Tensor:
    """Draw the negatives (V, K); arguments as in `uniform_negatives`, and the stream of the row's key."""
    out = torch.empty(len(slots), num_negatives, dtype=torch.int64, device=slots.device)
    if out.numel():
        _draw[-(-out.numel() // _BLOCK),](
            *(row_keys, slots, positives, out, out.numel(), length, num_items),
            K=num_negatives,
            STREAM=stream,
            BLOCK=_BLOCK,
        )
    return out
