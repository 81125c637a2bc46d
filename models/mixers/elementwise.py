"""Fused element-wise operations of the Mamba mixer. On the CPU, C++ computes each in one pass over memory."""

import ctypes
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from longplay.native.loading import call_native, load_native
from longplay.native.tracing import not_traced

_SOURCE = Path(__file__).with_name("elementwise.cpp")
_LANES, _BLOCK = 8, 512  # kLanes of vectors.h, kBlock of elementwise.cpp


def is_available(num_channels: int) -> bool:
    """Return whether the C++ supports float32 CPU tensors of this width. The first call may compile it."""
    return num_channels % _LANES == 0 and load_native(_SOURCE) is not None


@not_traced
def softplus(x: Tensor, bias: Tensor) -> Tensor:
    """Return log(1 + exp(x + bias)), (..., E), for x (..., E) and bias (E,) of one dtype."""
    if _runs_in_cpp(x, bias):
        return _Softplus.apply(x, bias)
    return F.softplus(x + bias)


@not_traced
def skip_and_gate(y: Tensor, u: Tensor, D: Tensor, z: Tensor) -> Tensor:
    """Return (y + D u) silu(z), (..., E), for y, u, z (..., E) and D (E,) of one dtype."""
    if _runs_in_cpp(y, u, D, z):
        return _SkipGate.apply(y, u, D, z)
    return torch.addcmul(y, u, D) * F.silu(z)


class _Sizes(ctypes.Structure):
    """The struct `Sizes` of the C++ source."""

    _fields_ = [(name, ctypes.c_int64) for name in ("slots", "channels", "stride", "threads")]


class _Softplus(torch.autograd.Function):
    """Compute softplus(x + bias) in C++."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, bias: Tensor) -> Tensor:
        x, bias = x.contiguous(), bias.contiguous()
        y = torch.empty_like(x)
        call_native(_SOURCE, "softplus_forward", _sizes_of(x), x, bias, y)
        ctx.save_for_backward(x, bias)
        return y

    @staticmethod
    def backward(ctx: Any, *grad_outputs: Tensor) -> tuple[Tensor, Tensor]:
        x, bias = ctx.saved_tensors
        dx, dbias = torch.empty_like(x), _parts(x)
        call_native(
            _SOURCE, "softplus_backward", _sizes_of(x), x, bias, grad_outputs[0].contiguous(), dx, dbias
        )
        return dx, dbias.sum(0)


class _SkipGate(torch.autograd.Function):
    """Compute (y + D u) silu(z) in C++."""

    @staticmethod
    def forward(ctx: Any, y: Tensor, u: Tensor, D: Tensor, z: Tensor) -> Tensor:
        y, u, D = y.contiguous(), u.contiguous(), D.contiguous()
        if z.stride(-1) != 1 or any(
            z.stride(i) != z.stride(i + 1) * z.shape[i + 1] for i in range(z.dim() - 2)
        ):
            z = z.contiguous()
        out = torch.empty_like(y)
        call_native(_SOURCE, "skip_gate_forward", _sizes_of(y, z), y, u, D, z, out)
        ctx.save_for_backward(y, u, D, z)
        return out

    @staticmethod
    def backward(ctx: Any, *grad_outputs: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        y, u, D, z = ctx.saved_tensors
        dy, du, dz = (torch.empty_like(y) for _ in range(3))
        dD = _parts(y)
        inputs = (y, u, D, z, grad_outputs[0].contiguous())
        call_native(_SOURCE, "skip_gate_backward", _sizes_of(y, z), *inputs, dy, du, dD, dz)
        return dy, du, dD.sum(0), dz


def _runs_in_cpp(*tensors: Tensor) -> bool:
    """Return whether the C++ supports these tensors. Autocast can mix dtypes, so each one is checked."""
    fits = all(tensor.device.type == "cpu" and tensor.dtype == torch.float32 for tensor in tensors)
    return fits and is_available(tensors[0].shape[-1])


def _sizes_of(x: Tensor, strided: Tensor | None = None) -> _Sizes:
    channels = x.shape[-1]
    stride = channels if strided is None or strided.dim() < 2 else strided.stride(-2)
    return _Sizes(x.numel() // channels, channels, stride, torch.get_num_threads())


def _parts(x: Tensor) -> Tensor:
    """Return zeros (blocks of slots, E), in which the C++ sums a gradient over the slots of each block."""
    channels = x.shape[-1]
    return x.new_zeros(-(-x.numel() // (channels * _BLOCK)), channels)
