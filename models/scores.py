"""The score of an item for a query, and how far a float32 score can be from it.

The score is the float64 dot product of the float32 query and the float32 row. Rankings and recommendations
compare these scores; float32 products only decide which pairs need the exact score.
"""

from collections.abc import Callable

import torch
from torch import Tensor

_PAIR_ELEMENTS = 1 << 20


def exact_dot(queries: Tensor, rows: Tensor) -> Tensor:
    """Return the scores (n,) float64 of matching rows of two (n, D) fp32 tensors."""
    return (queries.double() * rows.double()).sum(1)


def exact_scores(queries: Tensor, query: Tensor, rows_at: Callable[[Tensor], Tensor], row: Tensor) -> Tensor:
    """Return the scores (P,) float64 of pairs; a bounded number of rows is in memory at a time.

    Args:
        queries: (Q, D) fp32.
        query: (P,) int64 row numbers in `queries`.
        rows_at: returns the rows (n, D) fp32 at row numbers (n,), on the device of `queries`.
        row: (P,) int64, passed to `rows_at`.
    """
    scores = torch.empty(query.shape[0], dtype=torch.float64, device=queries.device)
    step = max(1, _PAIR_ELEMENTS // queries.shape[1])
    for at in range(0, query.shape[0], step):
        chunk = slice(at, at + step)
        scores[chunk] = exact_dot(queries[query[chunk]], rows_at(row[chunk]))
    return scores


def float32_error(width: int) -> float:
    """Return a bound on |fp32 score - score| / (|query| |row|) for rows of `width` elements."""
    return width * 2.0**-24


def score_slack(queries: Tensor, error: float) -> Tensor:
    """Return (Q,) float64: the largest error of each query's approximate scores per unit of a row's norm.

    Args:
        error: a bound as `float32_error` gives; doubled here, to cover the rounding of the bound itself.
    """
    return 2 * error * queries.double().norm(dim=1)
