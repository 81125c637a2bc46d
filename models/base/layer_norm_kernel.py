"""Layer norm of narrow rows in Triton. Importing it needs Triton.

PyTorch's kernel gives each row a block of threads, most of which idle at the widths of these encoders.
"""

# pyright: reportArgumentType=false, reportAttributeAccessIssue=false, reportCallIssue=false
# pyright: reportIncompatibleMethodOverride=false, reportOperatorIssue=false
# Triton's types do not show what a kernel computes with.

from typing import Any

import torch
import triton  # pyright: ignore[reportMissingImports] -- optional
import triton.language as tl  # pyright: ignore[reportMissingImports] -- optional
from torch import Tensor
from torch.autograd.function import once_differentiable

from longplay.native.tracing import not_traced
from longplay.native.triton_runtime import power_of_two

_TILE_ELEMENTS = 2048
_ENOUGH_PROGRAMS = 1056  # of the backward: 8 for each multiprocessor of an H100


@triton.jit
def _load_tile(pointer, row, column, inside, WIDTH: tl.constexpr):
    return tl.load(pointer + row[:, None] * WIDTH + column[None, :], mask=inside, other=0.0).to(tl.float32)


@triton.jit(do_not_specialize=["num_rows"])
def _forward(
    x,
    weight,
    bias,
    out,
    statistics,
    num_rows,
    eps,
    WIDTH: tl.constexpr,
    PADDED: tl.constexpr,
    ROWS: tl.constexpr,
):
    """Normalize ROWS rows. `statistics` (2, num_rows) receives the mean and 1 / standard deviation."""
    row = tl.program_id(0).to(tl.int64) * ROWS + tl.arange(0, ROWS)
    column = tl.arange(0, PADDED)
    inside = (row < num_rows)[:, None] & (column < WIDTH)[None, :]
    value = _load_tile(x, row, column, inside, WIDTH)
    mean = tl.sum(value, 1) / WIDTH
    centered = tl.where(inside, value - mean[:, None], 0.0)
    rstd = 1.0 / tl.sqrt(tl.sum(centered * centered, 1) / WIDTH + eps)
    scale = tl.load(weight + column, mask=column < WIDTH, other=0.0)
    shift = tl.load(bias + column, mask=column < WIDTH, other=0.0)
    result = centered * rstd[:, None] * scale[None, :] + shift[None, :]
    tl.store(out + row[:, None] * WIDTH + column[None, :], result, mask=inside)
    tl.store(statistics + row, mean, mask=row < num_rows)
    tl.store(statistics + num_rows + row, rstd, mask=row < num_rows)


@triton.jit(do_not_specialize=["num_rows", "tiles"])
def _backward(
    x,
    weight,
    statistics,
    out_grad,
    x_grad,
    parameter_grads,
    num_rows,
    tiles,
    WIDTH: tl.constexpr,
    PADDED: tl.constexpr,
    ROWS: tl.constexpr,
):
    """Compute the gradient of x for `tiles` tiles, and sums (programs, 2, WIDTH) for weight and bias."""
    column = tl.arange(0, PADDED)
    scale = tl.load(weight + column, mask=column < WIDTH, other=0.0)
    weight_grad = tl.zeros((ROWS, PADDED), tl.float32)
    bias_grad = tl.zeros((ROWS, PADDED), tl.float32)
    for tile in range(tiles):
        row = (tl.program_id(0).to(tl.int64) * tiles + tile) * ROWS + tl.arange(0, ROWS)
        inside = (row < num_rows)[:, None] & (column < WIDTH)[None, :]
        mean = tl.load(statistics + row, mask=row < num_rows, other=0.0)
        rstd = tl.load(statistics + num_rows + row, mask=row < num_rows, other=0.0)
        value = _load_tile(x, row, column, inside, WIDTH)
        normed = tl.where(inside, (value - mean[:, None]) * rstd[:, None], 0.0)
        grad = _load_tile(out_grad, row, column, inside, WIDTH)
        scaled = grad * scale[None, :]
        along = tl.sum(scaled * normed, 1) / WIDTH
        result = (scaled - tl.sum(scaled, 1)[:, None] / WIDTH - normed * along[:, None]) * rstd[:, None]
        tl.store(x_grad + row[:, None] * WIDTH + column[None, :], result, mask=inside)
        weight_grad += grad * normed
        bias_grad += grad
    sums = parameter_grads + tl.program_id(0) * 2 * WIDTH + column
    tl.store(sums, tl.sum(weight_grad, 0), mask=column < WIDTH)
    tl.store(sums + WIDTH, tl.sum(bias_grad, 0), mask=column < WIDTH)


@not_traced
def layer_norm(x: Tensor, weight: Tensor, bias: Tensor, eps: float) -> Tensor:
    """Compute `F.layer_norm` over the last dimension.

    Args:
        x: (..., D) float32.
        weight: (D,) float32.
        bias: (D,) float32.
        eps: term added to the variance.
    """
    return _LayerNorm.apply(x, weight, bias, eps)


class _LayerNorm(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor, eps: float) -> Tensor:
        x = x.contiguous()
        width, num_rows = x.shape[-1], x.numel() // x.shape[-1]
        sizes = _sizes(width)
        out, statistics = torch.empty_like(x), x.new_empty(2, num_rows)
        if num_rows:
            _forward[-(-num_rows // sizes["ROWS"]),](x, weight, bias, out, statistics, num_rows, eps, **sizes)
        ctx.save_for_backward(x, weight, statistics)
        return out

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grad_outputs: Tensor) -> tuple[Tensor | None, ...]:
        x, weight, statistics = ctx.saved_tensors
        width, num_rows = x.shape[-1], x.numel() // x.shape[-1]
        sizes = _sizes(width)
        num_tiles = -(-num_rows // sizes["ROWS"])
        tiles = -(-num_tiles // _ENOUGH_PROGRAMS)
        programs = -(-num_tiles // max(1, tiles))
        x_grad, sums = torch.empty_like(x), x.new_empty(programs, 2, width)
        if num_rows:
            grads = grad_outputs[0].contiguous(), x_grad, sums
            _backward[programs,](x, weight, statistics, *grads, num_rows, tiles, **sizes)
        weight_grad, bias_grad = sums.sum(0)
        return x_grad, weight_grad, bias_grad, None


def _sizes(width: int) -> dict[str, int]:
    padded = power_of_two(width)
    return {"WIDTH": width, "PADDED": padded, "ROWS": max(1, _TILE_ELEMENTS // padded)}
