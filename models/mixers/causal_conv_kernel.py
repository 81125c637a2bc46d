"""The causal convolution with SiLU in Triton. Importing this module needs Triton.

    pre_t = bias + sum_k weight[:, K - 1 - k] x_{t-k}        out_t = silu(pre_t)

with k from 0 to the number of earlier slots of the segment, at most K - 1. Arithmetic is float32. A program
computes tiles of slots by channels, and reads a slot once per tap: only the first read goes to memory. It has
one warp, so that sums over slots need no barrier.

The backward computes pre again. Its first kernel writes g, the gradient of pre, in x's dtype, and each
program's sums of dweight and dbias. The second computes dx from g. There are no atomics: PyTorch adds the
sums of the programs, so results repeat bitwise.
"""

# pyright: reportArgumentType=false, reportGeneralTypeIssues=false
# Triton's types do not show what a kernel computes with.

from typing import Any

import torch
import triton  # pyright: ignore[reportMissingImports] -- optional
import triton.language as tl  # pyright: ignore[reportMissingImports] -- optional
from torch import Tensor
from torch.autograd.function import once_differentiable

_TILE_SLOTS, _TILE_CHANNELS, _TILE_ELEMENTS = 64, 128, 1024  # at most
_SUMMING_PROGRAMS = 1320  # at most, of each block of channels: 10 run on each multiprocessor of an H100
_LOG2E = tl.constexpr(1.4426950408889634)
_LENGTHS = ["num_slots", "L", "tiles"]  # one compiled kernel serves all of their values


@triton.jit
def _last_tap(STARTS, first, t, num_slots, L, K: tl.constexpr, STEP: tl.constexpr):
    """Return (TILE,) int32, the last tap k for which slot + STEP * k is in the slot's segment, at most K - 1.

    It is -1 for slots from `num_slots` on. STEP is -1 or 1.
    """
    slot = first + t
    place = ((first % L).to(tl.int32) + t) % L  # in the row
    linked = slot < num_slots
    last = linked.to(tl.int32) - 1
    for k in tl.static_range(1, K):
        inside = linked & ((place >= k) if STEP < 0 else (place < L - k))
        border = slot - (k - 1) if STEP < 0 else slot + k  # a start here cuts off tap k
        linked = inside & (tl.load(STARTS + border, mask=inside, other=1) == 0)
        last += linked.to(tl.int32)
    return last


@triton.jit
def _tap(X, stride, first, t, e, last, E, k):
    """Load (TILE, BLOCK_E) float32 of the slots from `first` on; 0 where tap k is beyond the last tap."""
    at = X + first * stride + t[:, None] * stride + e[None, :]
    return tl.load(at, mask=(last >= k)[:, None] & (e < E)[None, :], other=0.0).to(tl.float32)


@triton.jit
def _weighted(total, X, stride, W, first, t, e, last, E: tl.constexpr, K: tl.constexpr, STEP: tl.constexpr):
    """Return total + sum_k weight[:, K - 1 - k] * x[slot + STEP * k] over the taps up to the last."""
    for k in tl.static_range(K):
        w = tl.load(W + e * K + (K - 1 - k), mask=e < E, other=0.0).to(tl.float32)
        total += w[None, :] * _tap(X, stride, first + STEP * k, t, e, last, E, k)
    return total


@triton.jit
def _sigmoid(v):
    return 1.0 / (1.0 + tl.exp2(-v * _LOG2E))


@triton.jit(do_not_specialize=_LENGTHS)
def conv_forward(
    X, W, BIAS, STARTS, OUT,
    num_slots, L, E: tl.constexpr, K: tl.constexpr, x_stride: tl.constexpr,
    TILE: tl.constexpr, BLOCK_E: tl.constexpr,
):  # fmt: skip
    """Compute the output of one tile."""
    first = tl.program_id(0).to(tl.int64) * TILE
    t = tl.arange(0, TILE)
    e = tl.program_id(1) * BLOCK_E + tl.arange(0, BLOCK_E)
    last = _last_tap(STARTS, first, t, num_slots, L, K, -1)
    bias = tl.load(BIAS + e, mask=e < E, other=0.0).to(tl.float32)
    pre = tl.zeros((TILE, BLOCK_E), tl.float32) + bias[None, :]
    pre = _weighted(pre, X, x_stride, W, first, t, e, last, E, K, -1)
    mask = (last >= 0)[:, None] & (e < E)[None, :]
    tl.store(OUT + first * E + t[:, None] * E + e[None, :], pre * _sigmoid(pre), mask=mask)


@triton.jit(do_not_specialize=_LENGTHS)
def conv_backward_pre(
    X, W, BIAS, STARTS, DOUT, G, SUMS,
    num_slots, L, tiles, E: tl.constexpr, K: tl.constexpr, x_stride: tl.constexpr,
    TILE: tl.constexpr, BLOCK_E: tl.constexpr, PADDED: tl.constexpr,
):  # fmt: skip
    """Compute G, the gradient of pre, of `tiles` tiles, and their sums.

    SUMS (programs, K + 1, E) float32: dweight for each tap, then dbias. PADDED is a power of two above K.
    """
    t = tl.arange(0, TILE)
    e = tl.program_id(1) * BLOCK_E + tl.arange(0, BLOCK_E)
    bias = tl.load(BIAS + e, mask=e < E, other=0.0).to(tl.float32)
    i = tl.arange(0, PADDED)[:, None]
    sums = tl.zeros((PADDED, BLOCK_E), tl.float32)
    for step in range(tiles):
        first = (tl.program_id(0).to(tl.int64) * tiles + step) * TILE
        last = _last_tap(STARTS, first, t, num_slots, L, K, -1)
        pre = tl.zeros((TILE, BLOCK_E), tl.float32) + bias[None, :]
        pre = _weighted(pre, X, x_stride, W, first, t, e, last, E, K, -1)
        gate = _sigmoid(pre)
        g = _tap(DOUT, E, first, t, e, last, E, 0) * gate * (1.0 + pre * (1.0 - gate))
        mask = (last >= 0)[:, None] & (e < E)[None, :]
        tl.store(G + first * E + t[:, None] * E + e[None, :], g, mask=mask)
        sums += tl.where(i == K, tl.sum(g, 0)[None, :], 0.0)
        for k in tl.static_range(K):
            x = _tap(X, x_stride, first - k, t, e, last, E, k)
            sums += tl.where(i == K - 1 - k, tl.sum(g * x, 0)[None, :], 0.0)
    to = SUMS + (tl.program_id(0).to(tl.int64) * (K + 1) + i) * E + e[None, :]
    tl.store(to, sums, mask=(i <= K) & (e < E)[None, :])


@triton.jit(do_not_specialize=_LENGTHS)
def conv_backward_x(
    G, W, STARTS, DX,
    num_slots, L, E: tl.constexpr, K: tl.constexpr, TILE: tl.constexpr, BLOCK_E: tl.constexpr,
):  # fmt: skip
    """Compute the gradient of x of one tile: the sum over the slots that read it."""
    first = tl.program_id(0).to(tl.int64) * TILE
    t = tl.arange(0, TILE)
    e = tl.program_id(1) * BLOCK_E + tl.arange(0, BLOCK_E)
    last = _last_tap(STARTS, first, t, num_slots, L, K, 1)
    dx = _weighted(tl.zeros((TILE, BLOCK_E), tl.float32), G, E, W, first, t, e, last, E, K, 1)
    mask = (last >= 0)[:, None] & (e < E)[None, :]
    tl.store(DX + first * E + t[:, None] * E + e[None, :], dx, mask=mask)


def causal_conv_silu_triton(x: Tensor, weight: Tensor, bias: Tensor, starts: Tensor) -> Tensor:
    """Compute `causal_conv_silu`. Differentiable once, in x, weight and bias.

    x is read in place if its channels are contiguous and its slots evenly spaced, as in a view of a
    projection's output; otherwise it is copied.

    Args:
        x: (B, L, E) float32 or bfloat16.
        weight: (E, K) float32 or bfloat16.
        bias: (E,) float32 or bfloat16.
        starts: (B, L) bool, True at the first slot of each segment.

    Returns:
        (B, L, E) of x's dtype.
    """
    if x.stride(2) != 1 or x.stride(0) != x.shape[1] * x.stride(1):
        x = x.clone(memory_format=torch.contiguous_format)
    flags = starts.contiguous().view(torch.uint8)
    return _TritonConv.apply(x, weight.contiguous(), bias.contiguous(), flags)


class _TritonConv(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor, flags: Tensor) -> Tensor:
        ctx.save_for_backward(x, weight, bias, flags)
        out = torch.empty_like(x, memory_format=torch.contiguous_format)
        if x.numel():
            conv_forward[_grid(x)](
                *(x, weight, bias, flags, out, *_lengths(x)), x_stride=x.stride(1), **_sizes(weight)
            )
        return out

    @staticmethod
    @once_differentiable
    def backward(  # pyright: ignore[reportIncompatibleMethodOverride] -- the decorator hides the name of ctx
        ctx: Any, *grad_outputs: Tensor
    ) -> tuple[Tensor, Tensor, Tensor, None]:
        x, weight, bias, flags = ctx.saved_tensors
        channels, num_taps = weight.shape
        dout = grad_outputs[0].contiguous()
        g, dx = (torch.empty_like(x, memory_format=torch.contiguous_format) for _ in range(2))
        tiles, blocks = _grid(x)
        tiles_each = max(1, triton.cdiv(tiles, _SUMMING_PROGRAMS))
        programs = triton.cdiv(tiles, tiles_each)
        sums = torch.empty(programs, num_taps + 1, channels, device=x.device)
        if x.numel():
            conv_backward_pre[programs, blocks](
                *(x, weight, bias, flags, dout, g, sums, *_lengths(x), tiles_each),
                x_stride=x.stride(1),
                PADDED=triton.next_power_of_2(num_taps + 1),
                **_sizes(weight),
            )
            conv_backward_x[tiles, blocks](g, weight, flags, dx, *_lengths(x), **_sizes(weight))
        total = sums.sum(0)
        return dx, total[:-1].t().to(weight.dtype), total[-1].to(bias.dtype), None


def tile(channels: int) -> tuple[int, int]:
    """Return the slots and the channels of a tile, powers of two."""
    block = min(_TILE_CHANNELS, triton.next_power_of_2(channels))
    return min(_TILE_SLOTS, _TILE_ELEMENTS // block), block


def _lengths(x: Tensor) -> tuple[int, int]:
    return x.shape[0] * x.shape[1], x.shape[1]


def _sizes(weight: Tensor) -> dict[str, int]:
    """Return the sizes and options that a kernel is compiled for."""
    channels, num_taps = weight.shape
    slots, block = tile(channels)
    sizes = dict(E=channels, K=num_taps, TILE=slots, BLOCK_E=block)
    return sizes | dict(num_warps=1, enable_fp_fusion=True)  # Triton 3.9 warns that its default will change


def _grid(x: Tensor) -> tuple[int, int]:
    """Return the number of tiles of slots and of blocks of channels."""
    num_rows, num_slots, channels = x.shape
    slots, block = tile(channels)
    return triton.cdiv(num_rows * num_slots, slots), triton.cdiv(channels, block)
