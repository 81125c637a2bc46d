"""Exact scores of items, and error bounds of float32 scores.

The exact score is the float64 dot product of the float32 query and the float32 row. Rankings and
recommendations compare exact scores. Float32 scores only select the pairs whose exact scores are computed.
"""

import os
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

_PAIR_ELEMENTS, _PAIR_ELEMENTS_ON_GPU = 1 << 20, 1 << 24  # elements of rows in memory at a time


def exact_dot(queries: Tensor, rows: Tensor) -> Tensor:
    """Return the exact scores (n,) float64 of corresponding rows of two (n, D) float32 tensors."""
    products = queries.double() * rows.double()
    if products.device.type == "cpu":
        return products.sum(1)
    # On a GPU, `sum` adds in an order that depends on n, which would break ties between calls.
    width = products.shape[1]
    while width > 1:
        half = (width + 1) // 2
        products[:, : width - half] += products[:, half:width]
        width = half
    return products[:, 0]


def exact_scores(queries: Tensor, query: Tensor, rows_at: Callable[[Tensor], Tensor], row: Tensor) -> Tensor:
    """Return the exact scores (P,) float64 of pairs, with a bounded number of rows in memory.

    Args:
        queries: (Q, D) float32.
        query: (P,) int64, index of each pair's query in `queries`.
        rows_at: maps row indices (n,) int64 to rows (n, D) float32 on the device of `queries`.
        row: (P,) int64, row index of each pair.
    """
    scores = torch.empty(query.shape[0], dtype=torch.float64, device=queries.device)
    elements = _PAIR_ELEMENTS if queries.device.type == "cpu" else _PAIR_ELEMENTS_ON_GPU
    step = max(1, elements // queries.shape[1])
    for at in range(0, query.shape[0], step):
        chunk = slice(at, at + step)
        scores[chunk] = exact_dot(queries[query[chunk]], rows_at(row[chunk]))
    return scores


def float32_scores(queries: Tensor, rows: Tensor) -> Tensor:
    """Return the float32 scores (Q, R) of queries (Q, D) and rows (R, D) float32, within `float32_error`."""
    backend: Any = torch.backends.cuda if queries.is_cuda else torch.backends.mkldnn
    # PyTorch's setting does not show this variable, which NVIDIA's libraries read themselves.
    by_library = queries.is_cuda and os.environ.get("NVIDIA_TF32_OVERRIDE") == "1"
    if backend.matmul.fp32_precision in ("none", "ieee") and not by_library:
        return queries @ rows.T
    # This process allows TF32 or bfloat16 in float32 products, whose errors are larger.
    return (queries.double() @ rows.double().T).float()


def float32_error(width: int) -> float:
    """Return a bound on |float32 score - exact score| / (|query| |row|) for rows of `width` elements."""
    return width * 2.0**-24


def score_slack(queries: Tensor, error: float) -> Tensor:
    """Return (Q,) float64 error bounds of each query's approximate scores, per unit of row norm.

    Args:
        queries: (Q, D) float32.
        error: relative error bound as from `float32_error`. It is doubled to cover the rounding of the
            bound itself.
    """
    return 2 * error * queries.double().norm(dim=1)
