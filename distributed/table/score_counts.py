"""Exact counts of the rows that score above each query's target.

`models/scores.py` defines a score. Every pair is scored in float32; on a GPU a kernel counts without storing
scores. Pairs whose rounding could change the comparison get their exact score, so the counts depend neither
on the block size nor on the kernel nor on the device. Rows in page-locked memory are copied to the queries'
device block by block.
"""

import ctypes
from collections.abc import Iterator
from pathlib import Path

import torch
from torch import Tensor

from longplay.distributed.runtime.waiting import waiting
from longplay.distributed.table import score_kernel
from longplay.distributed.table.host_memory import take_rows
from longplay.distributed.table.triton_kernels import works
from longplay.models.scores import exact_dot, exact_scores, float32_error, float32_scores, score_slack
from longplay.native.loading import call_native, load_native

BLOCK_ELEMENTS = 1 << 23  # scores in memory at a time (32 MiB in fp32), without the kernel
FUSED_ELEMENTS = 1 << 27  # padded row elements per launch of the kernel, 512 MiB in two fp16 parts
FUSED_SCORES = 1 << 34  # scores per launch of the kernel
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
        unsure = _where(lead.abs() <= slack[of] * norm + _TINY)
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
    fused = works(counting_kernel, hidden.device, hidden.shape[1])
    size = max(1, BLOCK_ELEMENTS // hidden.shape[0])
    if fused:
        most = FUSED_ELEMENTS // score_kernel.padded_width(hidden.shape[1])
        size = min(most, max(score_kernel.ROWS_PER_PROGRAM, FUSED_SCORES // hidden.shape[0]))
    for first in range(0, rows.shape[0], size):
        block = rows[first : first + size].to(hidden.device, non_blocking=True)
        counted = score_kernel.count_above(hidden, block, score) if fused else None
        # Without the kernel, or with too many undecided pairs, scores are in memory.
        for surely, query, row in [counted] if counted else _count_blocks(hidden, block, score, own - first):
            other = row != (own - first)[query]
            query, row = query[other], row[other]
            exact = exact_scores(hidden, query, block.__getitem__, row)
            beaten += surely
            beaten.index_add_(0, query, half_wins(exact, score[query]))
    return beaten


def _count_blocks(
    hidden: Tensor, rows: Tensor, score: Tensor, own: Tensor
) -> Iterator[tuple[Tensor, Tensor, Tensor]]:
    """Count as `score_kernel.count_above` does, with BLOCK_ELEMENTS scores in memory at a time."""
    slack = score_slack(hidden, float32_error(hidden.shape[1]))
    tolerance = slack * rows.norm(dim=1).max() + _TINY
    above = _round_up((score + tolerance).float())
    below = -_round_up(-(score - tolerance).float())
    step = max(1, BLOCK_ELEMENTS // hidden.shape[0])
    for begin in range(0, rows.shape[0], step):
        yield _count(hidden, rows, begin, begin + step, above, below, own)


def _where(condition: Tensor) -> Tensor:
    """Return the indices (N,) at which `condition` (n,) is true; waits for the device."""
    with waiting("the scores"):
        return condition.nonzero().squeeze(1)


def _count(
    hidden: Tensor, rows: Tensor, begin: int, end: int, above: Tensor, below: Tensor, own: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """Count scores of rows[begin:end], without the targets' own rows."""
    scores = float32_scores(hidden, rows[begin:end])
    inside = _where((own >= begin) & (own < begin + scores.shape[1]))
    scores[inside, own[inside] - begin] = -torch.inf
    surely, perhaps = _count_scores(scores, above, below)
    unsure = _where(perhaps > surely)
    near = scores[unsure]
    is_near = (near >= below[unsure].unsqueeze(1)) & (near <= above[unsure].unsqueeze(1))
    with waiting("the scores"):
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


def counting_kernel(device: torch.device, width: int) -> bool:
    """Check the kernel's counts against exact counts of a small problem with ties on `device`."""
    generator = torch.Generator().manual_seed(0)
    hidden, rows = (torch.randn(n, width, generator=generator).to(device) for n in (150, 300))
    exact = hidden.double() @ rows.double().T
    score = exact[:, 7]
    counted = score_kernel.count_above(hidden, rows, score)
    if counted is None:
        return False
    surely, query, row = counted
    found = surely.double().index_add(0, query, half_wins(exact[query, row], score[query]))
    return torch.equal(found, half_wins(exact, score.unsqueeze(1)).sum(1))


def _round_up(value: Tensor) -> Tensor:
    """Return the next larger fp32 number, so that rounding to fp32 never narrows the undecided band."""
    return torch.nextafter(value, torch.full_like(value, torch.inf))
