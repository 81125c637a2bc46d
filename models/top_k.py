"""Exact top-k items per query, for any number of ties, block size and device.

Blocks of rows are scored in float32. Items whose float32 score is within rounding error of the top k are
rescored exactly in float64; see `scores`.
"""

from collections.abc import Callable

import torch
from torch import Tensor

from longplay.models.scores import exact_scores, float32_error, float32_scores, score_slack

_BLOCK_ROWS = 1 << 18
_BLOCK_ELEMENTS = 1 << 23  # scores in memory at a time: 32 MiB in float32
_TINY = 1e-30  # absolute tolerance, for queries and rows of zeros


def top_k(
    queries: Tensor,
    rows: Tensor,
    k: int,
    *,
    items: Callable[[Tensor], Tensor],
    excluded: Tensor,
    block_rows: int | None = None,
) -> tuple[Tensor, Tensor]:
    """Return the k best items of each query, best first. Ties are ordered by item id.

    Args:
        queries: (Q, D) float32.
        rows: (R, D) float32, on any device; copied to the device of `queries` in blocks.
        k: number of items, at least 1.
        items: maps row indices (n,) int64 to item ids (n,) on the device of `queries`.
        excluded: (P, 2) int64 pairs (query index, row index) to exclude. Pairs with a row outside 0..R-1 are
            ignored.
        block_rows: rows scored at a time; None = chosen from the number of queries.

    Returns:
        Item ids (Q, min(k, R)) int64 and exact scores of the same shape, float64. Missing items have id 0 and
        score -inf.
    """
    k = min(k, rows.shape[0])
    found = torch.zeros(queries.shape[0], k, dtype=torch.int64, device=queries.device)
    scores = torch.full(found.shape, -torch.inf, dtype=torch.float64, device=queries.device)
    slack = score_slack(queries, float32_error(queries.shape[1]))
    step = block_rows or min(_BLOCK_ROWS, max(1, _BLOCK_ELEMENTS // max(1, queries.shape[0])))
    for first in range(0, rows.shape[0], step):
        block = rows[first : first + step].to(queries.device, non_blocking=True)
        approximate = float32_scores(queries, block)
        inside = ((excluded[:, 1] >= first) & (excluded[:, 1] < first + block.shape[0])).nonzero()[:, 0]
        approximate[excluded[inside, 0], excluded[inside, 1] - first] = -torch.inf
        tolerance = slack * block.norm(dim=1).max().double() + _TINY
        query, row = _select_pairs(approximate, scores[:, -1], tolerance, k)
        if query.shape[0]:
            exact = exact_scores(queries, query, block.__getitem__, row)
            more = _group_by_query(query, items(row + first), exact, queries.shape[0])
            found, scores = best_of(torch.cat([found, more[0]], 1), torch.cat([scores, more[1]], 1), k)
    return found, scores


def best_of(items: Tensor, scores: Tensor, k: int) -> tuple[Tensor, Tensor]:
    """Return the k best of n candidates per query, (Q, n) -> (Q, k), best first, ties by item id."""
    items, order = items.sort(dim=1, stable=True)
    scores, order = scores.gather(1, order).sort(dim=1, descending=True, stable=True)
    return items.gather(1, order)[:, :k], scores[:, :k]


def _select_pairs(block: Tensor, kth: Tensor, tolerance: Tensor, k: int) -> tuple[Tensor, Tensor]:
    """Return (query, row) of all float32 scores that may be in the top k, ordered by query, then row.

    Args:
        block: (Q, R) float32 scores, -inf where excluded.
        kth: (Q,) float64, the k-th best exact score so far, or -inf with fewer than k items.
        tolerance: (Q,) float64, error bound of the float32 scores.
        k: number of items to return.
    """
    bound = kth - tolerance
    if k <= block.shape[1] and bool((kth == -torch.inf).any()):
        # At least k items of this block have an exact score of at least its k-th float32 score - tolerance.
        bound = torch.maximum(bound, block.topk(k, dim=1).values[:, -1].double() - 2 * tolerance)
    below = bound.float()
    below = torch.nextafter(below, torch.full_like(below, -torch.inf))  # float() may have rounded up
    query, row = ((block >= below.unsqueeze(1)) & (block > -torch.inf)).nonzero(as_tuple=True)
    return query, row


def _group_by_query(query: Tensor, items: Tensor, scores: Tensor, num_queries: int) -> tuple[Tensor, Tensor]:
    """Arrange pairs (n,), ordered by query, as (Q, longest), padded with item 0 and score -inf."""
    counts = torch.bincount(query, minlength=num_queries)
    slot = torch.arange(query.shape[0], device=query.device) - (counts.cumsum(0) - counts)[query]
    grouped = items.new_zeros(num_queries, int(counts.max()))
    grouped_scores = torch.full(grouped.shape, -torch.inf, dtype=torch.float64, device=items.device)
    grouped[query, slot], grouped_scores[query, slot] = items, scores
    return grouped, grouped_scores
