"""Exact counts of the rows that score above each query's target.

`models/scores.py` defines a score. Every pair is scored in float32; on a GPU a kernel counts without storing
scores. Pairs whose rounding could change the comparison get their exact score, so the counts depend neither
on the block size nor on the kernel nor on the device. Rows in page-locked memory are copied to the queries'
device block by block.
"""

import ctypes
from pathlib import Path

import torch
from torch import Tensor

from longplay.distributed.table import triton_kernels
from longplay.distributed.table.host_memory import take_rows
from longplay.models.scores import exact_dot, exact_scores, float32_error, score_slack
from longplay.native.loading import call_native, load_native

BLOCK_ELEMENTS = 1 << 23  # scores in memory at a time (32 MiB in fp32), without the kernel
FUSED_ROWS = 1 << 22  # rows per launch of the kernel
_PAIR_ELEMENTS = 1 << 20  # row elements gathered at a time for single pairs
_TINY = 1e-30  # for queries and rows of zeros
_SOURCE = Path(__file__).with_name("score_counts.cpp")


def half_wins(scores: Tensor, against: Tensor) -> Tensor:
    """Return float64: 1 where a score is higher, 0.5 where it is equal, else 0."""
    return (scores > against).double() + 0.5 * (scores == against).double()


def count_beating_pairs(hidden: Tensor, query: Tensor, rows: Tensor, row: Tensor, score: Tensor) -> Tensor:
    """Count, for each query, its pairs with a score above the target's; a tie adds one half.

    Args:
        hidden: (Q, D) fp32.
        query: (P,) int64, each pair's query.
        rows: (R, D) fp32, on any device.
        row: (P,) int64, each pair's row.
        score: (Q,) float64, the targets' scores.
    Returns:
        (Q,) float64.
    """
    beaten = torch.zeros_like(score)
    slack = score_slack(hidden, float32_error(hidden.shape[1]))
    step = max(1, _PAIR_ELEMENTS // hidden.shape[1])
    for at in range(0, query.shape[0], step):
        of, theirs = query[at : at + step], row[at : at + step]
        theirs_score, norm = _pair_scores(hidden, of, rows, theirs)
        lead = theirs_score.double() - score[of]
        wins = (lead > 0).double()
        unsure = (lead.abs() <= slack[of] * norm + _TINY).nonzero().squeeze(1)
        exact = exact_dot(hidden[of[unsure]], take_rows(rows, theirs[unsure]))
        wins[unsure] = half_wins(exact, score[of[unsure]])
        beaten.index_add_(0, of, wins)
    return beaten


class _Sizes(ctypes.Structure):
    """`Sizes` of score_counts.cpp."""

    _fields_ = [(name, ctypes.c_int64) for name in ("count", "width", "threads")]


def _pair_scores(hidden: Tensor, query: Tensor, rows: Tensor, row: Tensor) -> tuple[Tensor, Tensor]:
    """Return fp32 scores (P,) of hidden[query] with rows[row], and the norms (P,) of these rows."""
    if hidden.device.type == "cpu" and load_native(_SOURCE) is not None:
        sizes = _Sizes(query.shape[0], hidden.shape[1], torch.get_num_threads())
        scores, norms = hidden.new_empty(2, query.shape[0])
        inputs = [tensor.contiguous() for tensor in (hidden, query, rows, row)]
        call_native(_SOURCE, "pair_scores", sizes, *inputs, scores, norms)
        return scores, norms
    theirs = take_rows(rows, row)
    return (hidden[query] * theirs).sum(1), theirs.norm(dim=1)


def count_beating_rows(hidden: Tensor, rows: Tensor, score: Tensor, own: Tensor) -> Tensor:
    """Count, for each query, the rows with a score above the target's; a tie adds one half.

    Args:
        hidden: (Q, D) fp32.
        rows: (R, D) fp32, on any device.
        score: (Q,) float64, the targets' scores.
        own: (Q,) int64, the target's row, which is not counted; outside 0..R-1 if `rows` does not hold it.
    Returns:
        (Q,) float64.
    """
    beaten = torch.zeros_like(score)
    if hidden.shape[0] == 0 or rows.shape[0] == 0:
        return beaten
    fused = triton_kernels.works(counting_kernel, hidden.device)
    width = hidden.shape[1]
    slack = score_slack(hidden, triton_kernels.score_error(width) if fused else float32_error(width))
    step = max(1, BLOCK_ELEMENTS // hidden.shape[0])
    size = FUSED_ROWS if fused else step
    for first in range(0, rows.shape[0], size):
        block = rows[first : first + size].to(hidden.device, non_blocking=True)
        tolerance = slack * block.norm(dim=1).max() + _TINY
        above = _round_up((score + tolerance).float())
        below = -_round_up(-(score - tolerance).float())
        counted = triton_kernels.count_above(hidden, block, above, below) if fused else None
        if counted is not None:
            parts = [counted]
        else:  # no kernel, or too many undecided pairs
            begins = range(0, block.shape[0], step)
            parts = (_count(hidden, block, at, at + step, above, below, own - first) for at in begins)
        for surely, query, row in parts:
            beaten += surely
            other = row != (own - first)[query]
            query, row = query[other], row[other]
            exact = exact_scores(hidden, query, block.__getitem__, row)
            beaten.index_add_(0, query, half_wins(exact, score[query]))
    return beaten


def _count(
    hidden: Tensor, rows: Tensor, begin: int, end: int, above: Tensor, below: Tensor, own: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """Count as `triton_kernels.count_above` does, with the scores of rows[begin:end] in memory.

    The targets' own rows are not counted.
    """
    scores = hidden @ rows[begin:end].T
    inside = ((own >= begin) & (own < begin + scores.shape[1])).nonzero().squeeze(1)
    scores[inside, own[inside] - begin] = -torch.inf
    surely, perhaps = _count_scores(scores, above, below)
    unsure = (perhaps > surely).nonzero().squeeze(1)
    near = scores[unsure]
    is_near = (near >= below[unsure].unsqueeze(1)) & (near <= above[unsure].unsqueeze(1))
    query, row = is_near.nonzero(as_tuple=True)
    return surely, unsure[query], begin + row


def _count_scores(scores: Tensor, above: Tensor, below: Tensor) -> tuple[Tensor, Tensor]:
    """Count each query's scores (Q, R) above `above` (Q,), and those of at least `below` (Q,)."""
    if scores.device.type == "cpu" and load_native(_SOURCE) is not None:
        sizes = _Sizes(*scores.shape, torch.get_num_threads())
        surely, perhaps = torch.empty(2, scores.shape[0], dtype=torch.int64)
        call_native(_SOURCE, "count_scores", sizes, scores, above, below, surely, perhaps)
        return surely, perhaps
    return (scores > above.unsqueeze(1)).sum(1), (scores >= below.unsqueeze(1)).sum(1)


def counting_kernel(device: torch.device) -> bool:
    """Check the kernel against PyTorch on a small problem with wide margins on `device`."""
    generator = torch.Generator().manual_seed(0)
    hidden, rows = (torch.randn(n, 24, generator=generator).to(device) for n in (70, 150))
    score = 3 * torch.randn(70, generator=generator).to(device)
    above, below = score + 0.1, score - 0.1
    nowhere = torch.full((70,), -1, device=device)
    fused = triton_kernels.count_above(hidden, rows, above, below)
    surely, query, _ = _count(hidden, rows, 0, 150, above, below, nowhere)
    # A score within rounding of a bound may be on either side, so a few differences are allowed.
    return (
        fused is not None
        and int((fused[0] - surely).abs().sum()) <= 2
        and abs(fused[1].shape[0] - query.shape[0]) <= 2
    )


def _round_up(value: Tensor) -> Tensor:
    """Return the next larger fp32 number, so that rounding to fp32 never narrows the undecided band."""
    return torch.nextafter(value, torch.full_like(value, torch.inf))
