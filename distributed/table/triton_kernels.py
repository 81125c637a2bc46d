"""Triton kernels for the table on a GPU: the touched rows' reading and update, and counting scores unstored.

Each has a twin in PyTorch that defines what it computes: `index_select`, the `row_optimizers`, and
`score_counts._count`.
With TRITON_INTERPRET=1 they run on the CPU, which is how the tests compare them. On a GPU each is tried on a
small problem against its twin before its first use, and left alone, with one line in the log, where it cannot
be compiled or differs.
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
_SWITCH = "LONGPLAY_TRITON"  # 0 leaves all of them alone
_ROW_ELEMENTS = 2048  # of a program that takes rows
_QUERIES, _ROWS = 64, 64  # a tile of scores
_ROWS_PER_PROGRAM = 1 << 14  # rows that one program of the count passes over
NEAR_CAPACITY = 1 << 22  # undecided pairs of one call, 64 MiB


@cache
def _source() -> Any | None:
    """The module of the kernels, or None where there is no Triton."""
    try:
        from longplay.distributed.table import triton_source
    except ImportError:
        return None
    return triton_source


def is_present(device: torch.device) -> bool:
    """Whether kernels can be tried for tensors on `device`: Triton is there, and a GPU or its interpreter."""
    can_run = device.type == "cuda" or os.environ.get("TRITON_INTERPRET") == "1"
    return can_run and os.environ.get(_SWITCH) != "0" and _source() is not None


@cache
def works(check: Callable[[torch.device], bool], device: torch.device) -> bool:
    """Whether a kernel may be used on `device`: `check` runs it on a small problem and compares."""
    if not is_present(device):
        return False
    try:
        good = check(device)
    except Exception as error:  # whatever a compiler raises; nothing rests on the kernel
        _log.warning("%s: left alone, PyTorch is used instead: %s", check.__name__, error)
        return False
    if not good:
        _log.warning("%s: left alone, PyTorch is used instead: results differ", check.__name__)
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
    """Adam's update of `rows` (U,) distinct, in place, in one pass over their moments and weights.

    Args:
        weight, exp_avg, exp_avg_sq: (R, D) fp32, contiguous.
        grads: (U, D) fp32, contiguous.
        step_size, eps: with Adam's bias corrections folded in.
    """
    _launch_by_rows("lazy_adam", [weight, exp_avg, exp_avg_sq, rows, grads], [*betas, step_size, eps], grads)


def row_adagrad(
    weight: Tensor, sum_sq: Tensor, rows: Tensor, grads: Tensor, *, step_size: float, eps: float
) -> None:
    """Row-wise Adagrad's update of `rows` (U,) distinct, in place; arguments as in `lazy_adam`.

    Args:
        sum_sq: (R,) fp32.
    """
    _launch_by_rows("row_adagrad", [weight, sum_sq, rows, grads], [step_size, eps], grads)


def take_rows(table: Tensor, rows: Tensor) -> Tensor:
    """(n, D) rows of `table` (R, D) fp32 by their numbers (n,), on the numbers' device.

    The table may lie in page-locked memory of the machine.
    """
    out = torch.empty(rows.shape[0], table.shape[1], dtype=table.dtype, device=rows.device)
    _launch_by_rows("take_rows", [table, rows, out], [], out)
    return out


def _launch_by_rows(name: str, tensors: list[Tensor], numbers: list[float], like: Tensor) -> None:
    """Launch a kernel whose programs take some rows each of `like` (n, D)."""
    num_rows, width = like.shape
    if not num_rows:
        return
    padded = _power_of_two(width)
    rows_at_once = max(1, _ROW_ELEMENTS // padded)
    kernel = getattr(_source(), name)
    grid = (-(-num_rows // rows_at_once),)
    kernel[grid](*tensors, num_rows, *numbers, WIDTH=width, PADDED=padded, ROWS=rows_at_once)


# ---------------------------------------------------------------------- counting scores


def count_above(
    queries: Tensor, rows: Tensor, above: Tensor, below: Tensor
) -> tuple[Tensor, Tensor, Tensor] | None:
    """How many rows score above each query's bound, and which pairs lie between its bounds.

    No score is stored. Each is the sum of three TF32 products; `score_error` says how exact it is.

    Args:
        queries: (Q, D) and rows: (R, D) fp32, contiguous; D is padded to a power of two of at least 16.
        above, below: (Q,) fp32.
    Returns:
        (Q,) int64 counts of scores > `above`, and the query (P,) and row (P,) of pairs with below <= score <=
        above; None if those are more than NEAR_CAPACITY.
    """
    num_queries, width = queries.shape
    counts = torch.zeros(num_queries, dtype=torch.int32, device=queries.device)
    near = torch.empty(NEAR_CAPACITY, 2, dtype=torch.int64, device=queries.device)
    num_near = torch.zeros(1, dtype=torch.int32, device=queries.device)
    source = _source()
    assert source is not None
    grid = (-(-num_queries // _QUERIES), -(-rows.shape[0] // _ROWS_PER_PROGRAM))
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
        ROWS_PER_PROGRAM=_ROWS_PER_PROGRAM,
        CAPACITY=NEAR_CAPACITY,
    )
    found = int(num_near)
    if found > NEAR_CAPACITY:
        return None
    return counts.long(), near[:found, 0], near[:found, 1]


def score_error(width: int) -> float:
    """A bound on |score - exact| / (|query| |row|) of `count_above`.

    TF32 keeps 11 bits. Each factor is split into two TF32 numbers with a rest of at most 2^-22 of it, and
    the product of the two small parts, at most 2^-22, is left out; sums in fp32 round by at most 2^-24 a
    term, and there are three products. Tensor cores may cut a sum off instead, which is up to twice as far:
    the bound is doubled where it is used.
    """
    return 3 * 2.0**-22 + 3 * width * 2.0**-24


def _power_of_two(width: int) -> int:
    """The smallest power of two that is not less."""
    return 1 << (width - 1).bit_length()
