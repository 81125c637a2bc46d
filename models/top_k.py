"""The k best items of each query: exact for any number of ties, any block size, any device.

Blocks of rows are scored in float32. Every item whose float32 score is within rounding of the k best gets its
exact score in float64, see `scores`.
"""

from collections.abc import Callable

import torch
from torch import Tensor

from longplay.models.scores import exact_scores, float32_error, score_slack

_BLOCK_ROWS = 1 << 18
_BLOCK_ELEMENTS = 1 << 23  # scores in memory at a time, 32 MiB in fp32
_TINY = 1e-30  # for queries and rows of zeros


def top_k(
    queries: Tensor,
    rows: Tensor,
    k: int,
    *,
    items: Callable[[Tensor], Tensor],
    excluded: Tensor,
    block_rows: int | None = None,
) -> tuple[Tensor, Tensor]:
    """Return the k best items of each query, best first, ties by item id.

    Args:
        queries: (Q, D) fp32.
        rows: (R, D) fp32, on any device; blocks of them are copied to the device of `queries`.
        k: at least 1.
        items: returns the ids (n,) of the items at row numbers (n,), on the device of `queries`.
        excluded: (P, 2) int64 pairs (query, row) that may not be returned; pairs whose row is outside 0..R-1
            are ignored.
        block_rows: rows scored at a time; None chooses by the number of queries.
    Returns:
        (Q, min(k, R)) int64 items and float64 scores; item 0 with score -inf where fewer items remain.
    """
    k = min(k, rows.shape[0])
    found = torch.zeros(queries.shape[0], k, dtype=torch.int64, device=queries.device)
    scores = torch.full(found.shape, -torch.inf, dtype=torch.float64, device=queries.device)
    slack = score_slack(queries, float32_error(queries.shape[1]))
    step = block_rows or min(_BLOCK_ROWS, max(1, _BLOCK_ELEMENTS // max(1, queries.shape[0])))
    for first in range(0, rows.shape[0], step):
        block = rows[first : first + step].to(queries.device, non_blocking=True)
        approximate = queries @ block.T
        inside = ((excluded[:, 1] >= first) & (excluded[:, 1] < first + block.shape[0])).nonzero()[:, 0]
        approximate[excluded[inside, 0], excluded[inside, 1] - first] = -torch.inf
        tolerance = slack * block.norm(dim=1).max().double() + _TINY
        query, row = _within_reach(approximate, scores[:, -1], tolerance, k)
        if query.shape[0]:
            exact = exact_scores(queries, query, block.__getitem__, row)
            more = _by_query(query, items(row + first), exact, queries.shape[0])
            found, scores = best_of(torch.cat([found, more[0]], 1), torch.cat([scores, more[1]], 1), k)
    return found, scores


def best_of(items: Tensor, scores: Tensor, k: int) -> tuple[Tensor, Tensor]:
    """Return the k best (items, scores) of each line of (Q, n) candidates, best first, ties by item id."""
    items, order = items.sort(dim=1, stable=True)
    scores, order = scores.gather(1, order).sort(dim=1, descending=True, stable=True)
    return items.gather(1, order)[:, :k], scores[:, :k]


def _within_reach(block: Tensor, kth: Tensor, tolerance: Tensor, k: int) -> tuple[Tensor, Tensor]:
    """Return (query, row) of every fp32 score that may be among the k best, ordered by query, then row.

    Args:
        block: (Q, R) fp32 scores, -inf where excluded.
        kth: (Q,) float64, the k-th best exact score so far, -inf where there are fewer.
        tolerance: (Q,) float64, the largest error of an fp32 score.
    """
    bound = kth - tolerance
    if k <= block.shape[1] and bool((kth == -torch.inf).any()):
        # k items of this block have exact scores of at least its k-th fp32 score less the tolerance.
        bound = torch.maximum(bound, block.topk(k, dim=1).values[:, -1].double() - 2 * tolerance)
    below = bound.float()
    below = torch.nextafter(below, torch.full_like(below, -torch.inf))  # conversion may have rounded up
    query, row = ((block >= below.unsqueeze(1)) & (block > -torch.inf)).nonzero(as_tuple=True)
    return query, row


def _by_query(query: Tensor, items: Tensor, scores: Tensor, num_queries: int) -> tuple[Tensor, Tensor]:
    """Arrange pairs (n,), ordered by query, as lines (Q, longest), padded with item 0 and score -inf."""
    counts = torch.bincount(query, minlength=num_queries)
    slot = torch.arange(query.shape[0], device=query.device) - (counts.cumsum(0) - counts)[query]
    lines = items.new_zeros(num_queries, int(counts.max()))
    line_scores = torch.full(lines.shape, -torch.inf, dtype=torch.float64, device=items.device)
    lines[query, slot], line_scores[query, slot] = items, scores
    return lines, line_scores
