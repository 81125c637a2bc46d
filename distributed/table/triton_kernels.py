"""Triton kernels for the table on a GPU: they read and update touched rows, and count scores.

A PyTorch twin defines what each kernel computes: `index_select`, the `row_optimizers`, and the counting of
`score_counts`. With TRITON_INTERPRET=1 the kernels run on the CPU, where the tests compare them. Before its
first use on a GPU each kernel is checked against its twin on a small problem. A kernel that cannot be
compiled or gives another result is not used, and the log says so.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Callable
from functools import cache
from typing import Any

import torch
from torch import Tensor

_log = logging.getLogger(__name__)
_SWITCH = "LONGPLAY_TRITON"  # 0 disables all kernels
_ROW_ELEMENTS = 2048  # per program of the row kernels
_QUERIES, _ROWS = 64, 64  # of one tile of scores
ROWS_PER_PROGRAM = 1 << 14  # rows that one program counts
NEAR_CAPACITY = 1 << 22  # undecided pairs of one launch, 64 MiB


@cache
def kernels() -> Any | None:
    """Return the module of the kernels; None if Triton is not installed."""
    try:
        from longplay.distributed.table import triton_source
    except ImportError:
        return None
    return triton_source


def is_available(device: torch.device) -> bool:
    """Return whether Triton is installed and enabled, and can run on `device`: a GPU, or its interpreter."""
    can_run = device.type == "cuda" or os.environ.get("TRITON_INTERPRET") == "1"
    return can_run and os.environ.get(_SWITCH) != "0" and kernels() is not None


@cache
def works(check: Callable[[torch.device], bool], device: torch.device) -> bool:
    """Return whether a kernel may be used on `device`; `check` compares it with its twin there."""
    if not is_available(device):
        return False
    try:
        good = check(device)
    except Exception as error:  # a compiler may raise anything, and PyTorch can do the work
        _log.warning("%s: failed, PyTorch is used instead: %s", check.__name__, error)
        return False
    if not good:
        _log.warning("%s: failed, PyTorch is used instead: results differ", check.__name__)
    return good


# ---------------------------------------------------------------------- touched rows


def lazy_adam(
    weight: Tensor,
    exp_avg: Tensor,
    exp_avg_sq: Tensor,
    rows: Tensor,
    grads: Tensor,
    *,
    betas: tuple[float, float],
    step_size: float,
    eps: float,
) -> None:
    """Apply Adam to the distinct rows `rows` (U,) in place, in one pass over moments and weights.

    Args:
        weight, exp_avg, exp_avg_sq: (R, D) fp32, contiguous.
        grads: (U, D) fp32, contiguous.
        step_size, eps: include Adam's bias corrections.
    """
    _launch_by_rows("lazy_adam", [weight, exp_avg, exp_avg_sq, rows, grads], [*betas, step_size, eps], grads)


def row_adagrad(
    weight: Tensor, sum_sq: Tensor, rows: Tensor, grads: Tensor, *, step_size: float, eps: float
) -> None:
    """Apply row-wise Adagrad to the distinct rows `rows` (U,) in place; arguments as in `lazy_adam`.

    Args:
        sum_sq: (R,) fp32.
    """
    _launch_by_rows("row_adagrad", [weight, sum_sq, rows, grads], [step_size, eps], grads)


def take_rows(table: Tensor, rows: Tensor) -> Tensor:
    """Return the rows (n, D) of `table` (R, D) fp32 at row numbers (n,), on the device of `rows`.

    The table may be in page-locked host memory.
    """
    out = torch.empty(rows.shape[0], table.shape[1], dtype=table.dtype, device=rows.device)
    _launch_by_rows("take_rows", [table, rows, out], [], out)
    return out


def _launch_by_rows(name: str, tensors: list[Tensor], numbers: list[float], like: Tensor) -> None:
    """Launch a kernel in which each program handles some rows of `like` (n, D)."""
    num_rows, width = like.shape
    if not num_rows:
        return
    padded = _power_of_two(width)
    rows_at_once = max(1, _ROW_ELEMENTS // padded)
    kernel = getattr(kernels(), name)
    grid = (-(-num_rows // rows_at_once),)
    kernel[grid](*tensors, num_rows, *numbers, WIDTH=width, PADDED=padded, ROWS=rows_at_once)


# ---------------------------------------------------------------------- counting scores


def count_above(
    queries: Tensor, rows: Tensor, above: Tensor, below: Tensor
) -> tuple[Tensor, Tensor, Tensor] | None:
    """Count the rows that score above each query's upper bound, and list the pairs between its bounds.

    No score is stored. A score is the sum of three TF32 products; `score_error` bounds its error.

    Args:
        queries: (Q, D) and rows: (R, D) fp32, contiguous; D is padded to a power of two of at least 16.
        above, below: (Q,) fp32.
    Returns:
        (Q,) int64 counts of scores > `above`, and the query (P,) and row (P,) of each pair with
        below <= score <= above; None if there are more than NEAR_CAPACITY such pairs.
    """
    num_queries, width = queries.shape
    counts = torch.zeros(num_queries, dtype=torch.int32, device=queries.device)
    near = torch.empty(NEAR_CAPACITY, 2, dtype=torch.int64, device=queries.device)
    num_near = torch.zeros(1, dtype=torch.int32, device=queries.device)
    source = kernels()
    assert source is not None
    grid = (-(-num_queries // _QUERIES), -(-rows.shape[0] // ROWS_PER_PROGRAM))
    source.count_above[grid](
        queries,
        rows,
        above,
        below,
        counts,
        near,
        num_near,
        num_queries,
        rows.shape[0],
        WIDTH=width,
        PADDED=max(16, _power_of_two(width)),
        QUERIES=_QUERIES,
        ROWS=_ROWS,
        ROWS_PER_PROGRAM=ROWS_PER_PROGRAM,
        CAPACITY=NEAR_CAPACITY,
    )
    found = int(num_near)
    if found > NEAR_CAPACITY:
        return None
    return counts.long(), near[:found, 0], near[:found, 1]


def score_error(width: int) -> float:
    """Return a bound on |score - exact| / (|query| |row|) of `count_above`.

    TF32 keeps 11 bits. Each factor is split into two TF32 numbers with a remainder of at most 2^-22 of it.
    The product of the two small parts, at most 2^-22, is omitted. fp32 sums round by at most 2^-24 per term,
    and there are three products. Tensor cores may truncate a sum, an error of up to twice as much: callers
    double the bound.
    """
    return 3 * 2.0**-22 + 3 * width * 2.0**-24


def _power_of_two(width: int) -> int:
    """Return the smallest power of two that is at least `width`."""
    return 1 << (width - 1).bit_length()
