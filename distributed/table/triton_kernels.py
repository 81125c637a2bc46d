"""Triton kernels that read and update touched rows on a GPU, and the check before a kernel is used.

A PyTorch twin defines what each kernel computes: `index_select` and the `row_optimizers`. With
TRITON_INTERPRET=1 the kernels run on the CPU, where the tests compare them. Before its first use at a width
each kernel is checked against its twin on a small problem of that width. A kernel that cannot be compiled or
gives another result is not used, which is logged.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from functools import cache
from typing import Any

import torch
from torch import Tensor

from longplay.native.triton_runtime import can_run_triton, power_of_two

_log = logging.getLogger(__name__)
_ROW_ELEMENTS = 1024  # per program of the row kernels


def kernels() -> Any:
    """Return the module of the kernels; importing it needs Triton."""
    from longplay.distributed.table import triton_source

    return triton_source


@cache
def works(check: Callable[[torch.device, int], bool], device: torch.device, width: int) -> bool:
    """Return whether a kernel may be used on `device` for fp32 rows of `width` elements.

    The first call runs `check(device, width)`, which compares the kernel with its twin.
    """
    if not can_run_triton(device.type):
        return False
    name = f"{check.__name__} of width {width}"
    try:
        good = check(device, width)
    except Exception as error:  # a compiler may raise anything, and PyTorch can do the work
        _log.warning("%s: failed, PyTorch is used instead: %s", name, error)
        return False
    if not good:
        _log.warning("%s: failed, PyTorch is used instead: results differ", name)
    return good


# ---------------------------------------------------------------------- touched rows


def lazy_adam(
    weight: Tensor,
    exp_avg: Tensor,
    exp_avg_sq: Tensor,
    rows: Tensor,
    grads: Tensor,
    betas: tuple[float, float],
    step_size: float,
    eps: float,
) -> None:
    """Apply Adam to the distinct rows `rows` (U,) in place, in one pass over moments and weights.

    Args:
        weight, exp_avg, exp_avg_sq: (R, D) fp32, contiguous.
        rows: (U,) int64 or int32; a negative number is skipped.
        grads: (U, D) fp32.
        step_size, eps: include Adam's bias corrections.
    """
    grads = grads.contiguous()
    # 1 - beta is computed here, in float64: in the kernel's float32, 1 - 0.999 is 4e-5 off.
    numbers = [1 - betas[0], betas[1], 1 - betas[1], step_size, eps]
    _launch_by_rows("lazy_adam", [weight, exp_avg, exp_avg_sq, rows, grads], numbers, grads)


def row_adagrad(
    weight: Tensor, sum_sq: Tensor, rows: Tensor, grads: Tensor, step_size: float, eps: float
) -> None:
    """Apply row-wise Adagrad to the distinct rows `rows` (U,) in place; arguments as in `lazy_adam`.

    Args:
        sum_sq: (R,) fp32.
    """
    grads = grads.contiguous()
    _launch_by_rows("row_adagrad", [weight, sum_sq, rows, grads], [step_size, eps], grads)


def take_rows(table: Tensor, rows: Tensor, out: Tensor | None = None) -> Tensor:
    """Return the rows (n, D) of `table` (R, D) fp32 at row numbers (n,), on the device of `rows`.

    The table may be in page-locked host memory.

    Args:
        rows: int64 or int32; where a number is negative, `out` is left as it is.
        out: (n, D), filled and returned; None = a new tensor.
    """
    if out is None:
        out = torch.empty(rows.shape[0], table.shape[1], dtype=table.dtype, device=rows.device)
    _launch_by_rows("take_rows", [table, rows, out], [], out)
    return out


def _launch_by_rows(name: str, tensors: list[Tensor], numbers: list[float], like: Tensor) -> None:
    """Launch a kernel in which each program handles some rows of `like` (n, D)."""
    num_rows, width = like.shape
    if not num_rows:
        return
    padded = power_of_two(width)
    at_once = rows_at_once(padded)
    kernel = getattr(kernels(), name)
    grid = (-(-num_rows // at_once),)
    kernel[grid](*tensors, num_rows, *numbers, WIDTH=width, PADDED=padded, ROWS=at_once)


def rows_at_once(padded: int) -> int:
    """Return how many rows of `padded` elements one program of a row kernel handles."""
    return max(1, _ROW_ELEMENTS // padded)
