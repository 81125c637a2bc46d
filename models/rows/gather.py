"""Gather looked-up rows by index and score them, with row gradients that are summed in a fixed order.

PyTorch's backward of an embedding sorts the indices again at every call. The lookup has sorted them already:
with its `RowEntries`, Triton kernels sum the gradient of each row over its entries, without atomics. Without
`RowEntries` PyTorch does the work.
"""

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.nn import functional as F

from longplay.native.triton_runtime import power_of_two

_ENTRIES, _SUMMED_ENTRIES = 32, 8  # per program; a row of a step has few entries


@dataclass(frozen=True, kw_only=True)
class RowEntries:
    """The entries of each row of a lookup: the positions of the row in the list of items looked up.

    Attributes:
        order: (n,) int64, all entries grouped by row, ascending within a row.
        bounds: (U + 2,) int64; order[bounds[r]:bounds[r + 1]] are the entries of row r. Row 0 is padding.
        first: entry of the first index passed to `gather_rows` or `score_candidates`.
    """

    order: Tensor
    bounds: Tensor
    first: int = 0

    def skip(self, count: int) -> "RowEntries":
        """Return the same entries for indices that come `count` entries later."""
        return RowEntries(order=self.order, bounds=self.bounds, first=self.first + count)


def find_entries(rows: Tensor) -> tuple[Tensor, Tensor, RowEntries]:
    """Find the distinct values of `rows`, as torch.unique does, and the entries of each.

    Args:
        rows: (n,) int64; -1 is padding.

    Returns:
        (U,) the distinct values except -1, ascending; (n,) int64 each entry's index into them plus one, 0
        for padding; and the entries. Synchronizes with the device once.
    """
    ascending, order = torch.sort(F.pad(rows, (1, 0), value=-1), stable=True)  # so that row 0 exists
    is_first = torch.ones_like(ascending, dtype=torch.bool)
    torch.ne(ascending[1:], ascending[:-1], out=is_first[1:])
    bounds = is_first.nonzero().squeeze(1)
    index = torch.empty_like(order).scatter_(0, order, is_first.cumsum(0).sub_(1))
    bounds = F.pad(bounds, (0, 1), value=ascending.shape[0])
    return ascending[bounds[1:-1]], index[1:], RowEntries(order=order.sub_(1), bounds=bounds)


def gather_rows(rows: Tensor, index: Tensor, entries: RowEntries | None) -> Tensor:
    """Return rows[index], (..., D).

    Args:
        rows: (U + 1, D) float32; the gradient of row 0 is zero if `entries` are given.
        index: (...) int64.
        entries: the entries of the lookup, skipped to the first of `index`; None = PyTorch's embedding.
    """
    return F.embedding(index, rows) if entries is None else _GatherRows.apply(rows, index, entries)


def score_candidates(
    hidden: Tensor, rows: Tensor, positives: Tensor, negatives: Tensor, entries: RowEntries
) -> tuple[Tensor, Tensor]:
    """Score each target's candidates by dot products.

    Args:
        hidden: (V, D) float32.
        rows: (U + 1, D) float32.
        positives: (V,) int64, row of each target.
        negatives: (V, K) int64, rows of its negatives.
        entries: the entries of the lookup, skipped to the first positive; the negatives come next.

    Returns:
        Scores of the targets (V,) and of the negatives (V, K), float32.
    """
    scores = _ScoreCandidates.apply(hidden, rows, positives, negatives, entries)
    return scores[: len(positives)], scores[len(positives) :].view(negatives.shape)


class _GatherRows(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, rows: Tensor, index: Tensor, entries: RowEntries) -> Tensor:
        ctx.entries, ctx.shape = entries, rows.shape
        return rows.index_select(0, index.flatten()).view(*index.shape, -1)

    @staticmethod
    @once_differentiable
    def backward(  # pyright: ignore[reportIncompatibleMethodOverride] -- the decorator hides the name of ctx
        ctx: Any, *grad_outputs: Tensor
    ) -> tuple[Tensor, None, None]:
        grad = grad_outputs[0].contiguous().flatten(0, -2)
        return _sum_by_row(grad, None, ctx.entries, len(grad), ctx.shape), None, None


class _ScoreCandidates(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, hidden: Tensor, rows: Tensor, positives: Tensor, negatives: Tensor, entries: RowEntries
    ) -> Tensor:
        hidden, negatives = hidden.contiguous(), negatives.contiguous()
        num_entries = positives.numel() + negatives.numel()
        scores = hidden.new_empty(num_entries)
        if num_entries:
            _kernels().score_candidates[-(-num_entries // _ENTRIES),](
                *(hidden, rows, positives, negatives, scores, len(positives), num_entries),
                K=negatives.shape[1],
                BLOCK=_ENTRIES,
                **_widths(rows),
            )
        ctx.save_for_backward(hidden, rows, positives, negatives)
        ctx.entries = entries
        return scores

    @staticmethod
    @once_differentiable
    def backward(  # pyright: ignore[reportIncompatibleMethodOverride] -- the decorator hides the name of ctx
        ctx: Any, *grad_outputs: Tensor
    ) -> tuple[Tensor | None, ...]:
        hidden, rows, positives, negatives = ctx.saved_tensors
        score_grads = grad_outputs[0].contiguous()
        hidden_grads, num_negatives = torch.empty_like(hidden), negatives.shape[1]
        if len(positives):
            _kernels().hidden_gradients[-(-len(positives) // _ENTRIES),](
                *(score_grads, rows, positives, negatives, hidden_grads, len(positives)),
                K=num_negatives,
                BLOCK=_ENTRIES,
                **_widths(rows),
            )
        row_grads = _sum_by_row(hidden, score_grads, ctx.entries, len(score_grads), rows.shape, num_negatives)
        return hidden_grads, row_grads, None, None, None


def _sum_by_row(
    values: Tensor,
    factors: Tensor | None,
    entries: RowEntries,
    num_entries: int,
    shape: torch.Size,
    num_negatives: int = 1,
) -> Tensor:
    """Sum the gradients of `num_entries` entries by row, see `triton_source.sum_by_row`."""
    out = torch.empty(shape, device=values.device)
    out[0] = 0.0
    if shape[0] > 1:
        _kernels().sum_by_row[shape[0] - 1,](
            *(values, values if factors is None else factors, entries.order, entries.bounds, out),
            *(entries.first, num_entries, len(values)),
            K=num_negatives,
            SCALED=factors is not None,
            BLOCK=_SUMMED_ENTRIES,
            num_warps=1,
            **_widths(out),
        )
    return out


def _kernels() -> Any:
    """Return the module of the kernels; importing it needs Triton."""
    from longplay.models.rows import triton_source

    return triton_source


def _widths(rows: Tensor) -> dict[str, int]:
    return {"WIDTH": rows.shape[1], "PADDED": power_of_two(rows.shape[1])}
