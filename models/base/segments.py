"""The segments of packed rows, computed once per forward from `seq_idx` and shared by all blocks."""

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from longplay.native.tracing import not_traced

SMALLEST_BUCKET = 16  # slots; shorter segments share one bucket


@dataclass(frozen=True)
class PaddedBuckets:
    """Segments batched by length: one padded batch (segments, slots) per bucket of lengths, concatenated.

    P is the total number of padded slots of all buckets.

    Attributes:
        shapes: (segments, slots) of each bucket. The number of slots is a power of two times
            SMALLEST_BUCKET, or L. Except in the smallest bucket, less than half of the slots are padding.
        source: (P,) int64, the flat slot b * L + t that each padded slot copies. Padding copies the first
            slot of its segment.
        target: (B * L,) int64, the padded slot of each flat slot: the inverse of `source`.
        is_padding: (P, 1) bool, True at padding.
    """

    shapes: list[tuple[int, int]]
    source: Tensor
    target: Tensor
    is_padding: Tensor

    def map(self, function: Callable[[Tensor], Tensor], x: Tensor) -> Tensor:
        """Apply `function` to each bucket of segments of x.

        Args:
            function: (segments, slots, D) -> (segments, slots, E). It must be causal along the slots, because
                segments are padded at the end.
            x: (B, L, D).

        Returns:
            (B, L, E).
        """
        padded = self.gather(x.flatten(0, 1))
        sizes = [num_segments * num_slots for num_segments, num_slots in self.shapes]
        outputs = [
            function(part.unflatten(0, shape)).flatten(0, 1)
            for part, shape in zip(padded.split(sizes), self.shapes, strict=True)
        ]
        return self.scatter(torch.cat(outputs)).unflatten(0, x.shape[:2])

    def gather(self, flat: Tensor) -> Tensor:
        """Copy flat slots (B * L, D) to padded slots (P, D). Forward and backward are deterministic."""
        return _regroup(flat, self.source, self.target, None)

    def scatter(self, padded: Tensor) -> Tensor:
        """Copy padded slots (P, D) to flat slots (B * L, D). Padding is discarded and has zero gradient."""
        return _regroup(padded, self.target, self.source, self.is_padding)


class SegmentLayout:
    """The segments of a batch of rows. Properties are computed on first use.

    Args:
        seq_idx: (B, L) int32 or int64, the segment number of each slot. A segment is a run of equal numbers.
    """

    def __init__(self, seq_idx: Tensor) -> None:
        self.seq_idx = seq_idx

    @cached_property
    def starts(self) -> Tensor:
        """(B, L) bool, True at the first slot of each segment."""
        starts = torch.ones_like(self.seq_idx, dtype=torch.bool)
        torch.ne(self.seq_idx[:, 1:], self.seq_idx[:, :-1], out=starts[:, 1:])
        return starts

    @cached_property
    def positions(self) -> Tensor:
        """(B, L) int64, the index of each slot within its segment: 0, 1, 2, ..."""
        slots = torch.arange(self.seq_idx.shape[1], device=self.seq_idx.device).expand_as(self.seq_idx)
        return slots - torch.where(self.starts, slots, 0).cummax(dim=1).values

    def same_segment(self, shift: int, dtype: torch.dtype) -> Tensor:
        """Return (B, L - shift, 1): 1 where a slot and the slot `shift` before it share a segment, else 0."""
        return (self.seq_idx[:, shift:] == self.seq_idx[:, :-shift]).unsqueeze(2).to(dtype)

    @cached_property
    def first_slots(self) -> Tensor:
        """(S,) int64, the flat slot b * L + t at which each segment starts. Synchronizes with the device."""
        return self.starts.flatten().nonzero().squeeze(1)

    @cached_property
    def lengths(self) -> Tensor:
        """(S,) int64, the number of slots of each segment."""
        return torch.diff(F.pad(self.first_slots, (0, 1), value=self.seq_idx.numel()))

    @cached_property
    def buckets(self) -> PaddedBuckets:
        """The segments as padded batches. Synchronizes with the device."""
        longest = self.seq_idx.shape[1]
        target = torch.empty(self.seq_idx.numel(), dtype=torch.int64, device=self.seq_idx.device)
        shapes, sources, paddings = [], [], []
        offset, low, high = 0, 0, min(SMALLEST_BUCKET, longest)
        while low < longest:
            members = ((self.lengths > low) & (self.lengths <= high)).nonzero().squeeze(1)
            if len(members):
                first = self.first_slots[members].unsqueeze(1)
                steps = torch.arange(high, device=first.device)
                padding = steps >= self.lengths[members].unsqueeze(1)
                source = torch.where(padding, first, first + steps)
                padded = offset + torch.arange(source.numel(), device=first.device).view_as(source)
                target[source[~padding]] = padded[~padding]
                shapes.append((len(members), high))
                sources.append(source.flatten())
                paddings.append(padding.flatten())
                offset += source.numel()
            low, high = high, min(2 * high, longest)
        return PaddedBuckets(shapes, torch.cat(sources), target, torch.cat(paddings).unsqueeze(1))


def select_slots(x: Tensor, at: Tensor | None) -> Tensor:
    """Return x (B, L, ...) at the flat slots `at` (Q,) as (Q, ...), or x itself if `at` is None."""
    return x if at is None else x.flatten(0, 1)[at]


@not_traced
def _regroup(x: Tensor, index: Tensor, inverse: Tensor, zero_grad_rows: Tensor | None) -> Tensor:
    return _Regroup.apply(x, index, inverse, zero_grad_rows)


class _Regroup(torch.autograd.Function):
    """Compute x[index]. The backward gathers too, because a scatter-add is not deterministic."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, index: Tensor, inverse: Tensor, zero_grad_rows: Tensor | None) -> Tensor:
        ctx.save_for_backward(inverse, zero_grad_rows)
        return x.index_select(0, index)

    @staticmethod
    def backward(ctx: Any, *grad_outputs: Tensor) -> tuple[Tensor, None, None, None]:
        inverse, zero_grad_rows = ctx.saved_tensors
        grad = grad_outputs[0].index_select(0, inverse)
        return grad if zero_grad_rows is None else grad.masked_fill_(zero_grad_rows, 0.0), None, None, None
