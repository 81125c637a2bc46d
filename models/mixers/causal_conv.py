"""Depthwise causal convolution within segments, followed by SiLU."""

import ctypes
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from longplay.models.base.config import ScanName
from longplay.models.base.segments import SegmentLayout
from longplay.models.scans.packages import PackageFunction, requested_backend, uses_packages
from longplay.native.loading import call_native, load_native
from longplay.native.tracing import not_traced
from longplay.native.triton_runtime import can_run_triton

_SOURCE = Path(__file__).with_name("causal_conv.cpp")
KERNEL = PackageFunction("causal-conv1d", "causal_conv1d", "causal_conv1d_fn")


@not_traced
def causal_conv_silu(
    x: Tensor, weight: Tensor, bias: Tensor, layout: SegmentLayout, scan: ScanName = "auto"
) -> Tensor:
    """Return silu(bias + sum_k weight[:, k] * x[slot - (K - 1 - k)]) within segments.

    CUDA tensors use causal-conv1d if `scan` is "kernel" and it supports their shape. Otherwise float32 and
    bfloat16 use Triton, unless `scan` is a backend in PyTorch. CPU tensors use C++ if a compiler is
    available. Everything else is computed in PyTorch.

    Args:
        x: (B, L, E), any float dtype.
        weight: (E, K); tap K - 1 is the current slot, as in a causal nn.Conv1d.
        bias: (E,).
        layout: the segments of the rows.
        scan: the mixer's setting `scan_backend`.

    Returns:
        (B, L, E) of x's dtype.

    Raises:
        ValueError: `scan` is "kernel" and causal-conv1d is not installed.
    """
    if x.is_cuda and _uses_package(scan, *weight.shape):
        return causal_conv_silu_package(x, weight, bias, layout)
    by_triton = uses_packages(scan) and can_run_triton(x.device.type)
    if by_triton and x.dtype in (torch.float32, torch.bfloat16):
        from longplay.models.mixers.causal_conv_kernel import causal_conv_silu_triton

        return causal_conv_silu_triton(x, weight, bias, layout.starts)
    by_cpp = x.device.type == "cpu" and x.dtype == torch.float32 and load_native(_SOURCE) is not None
    return F.silu((_CppConv if by_cpp else _TorchConv).apply(x, weight, bias, layout))


def causal_conv_silu_package(x: Tensor, weight: Tensor, bias: Tensor, layout: SegmentLayout) -> Tensor:
    """Compute `causal_conv_silu` with causal-conv1d: E must be a multiple of 8, and K 2 to 4."""
    seq_idx = layout.seq_idx.to(torch.int32).contiguous()
    x = x.contiguous().transpose(1, 2)  # channels last, which the kernel needs for segments
    return KERNEL.require()(x, weight, bias, seq_idx=seq_idx, activation="silu").transpose(1, 2)


def _uses_package(scan: ScanName, channels: int, num_taps: int) -> bool:
    """Return whether a convolution of this shape uses causal-conv1d on CUDA."""
    return requested_backend(scan) == "kernel" and channels % 8 == 0 and 2 <= num_taps <= 4


def require_conv_package(conv: nn.Conv1d, scan: ScanName) -> None:
    """Check that causal-conv1d can be imported if `causal_conv_silu` needs it on CUDA.

    Raises:
        ValueError: it cannot.
    """
    if _uses_package(scan, conv.out_channels, conv.kernel_size[0]):
        KERNEL.require()


def causal_conv_step(x_t: Tensor, weight: Tensor, bias: Tensor, conv_state: Tensor) -> tuple[Tensor, Tensor]:
    """Compute one slot of `causal_conv_silu`.

    Args:
        x_t: (B, E), input at the new slot.
        weight: (E, K).
        bias: (E,).
        conv_state: (B, K - 1, E), the last K - 1 inputs of the segment, oldest first; 0 before its start.

    Returns:
        The output (B, E) and the new state (B, K - 1, E).
    """
    window = torch.cat([conv_state, x_t.unsqueeze(1)], dim=1)
    return F.silu((window * weight.t()).sum(1) + bias), window[:, 1:]


class _TorchConv(torch.autograd.Function):
    """Compute the convolution in PyTorch by shifted, masked multiply-adds."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor, layout: SegmentLayout) -> Tensor:
        num_taps, num_slots = weight.shape[1], x.shape[1]
        masks = [layout.same_segment(shift, x.dtype) for shift in range(1, min(num_taps, num_slots))]
        out = torch.addcmul(bias, x, weight[:, -1])
        for shift, mask in enumerate(masks, start=1):
            out[:, shift:].addcmul_(x[:, :-shift] * mask, weight[:, -1 - shift])
        ctx.save_for_backward(x, weight, *masks)
        return out

    @staticmethod
    def backward(ctx: Any, *grad_outputs: Tensor) -> tuple[Tensor, Tensor, Tensor, None]:
        x, weight, *masks = ctx.saved_tensors
        grad = grad_outputs[0]
        grad_x = grad * weight[:, -1]
        grad_weight = torch.zeros_like(weight)
        grad_weight[:, -1] = (grad * x).sum((0, 1))
        for shift, mask in enumerate(masks, start=1):
            masked_grad = grad[:, shift:] * mask
            grad_x[:, :-shift].addcmul_(masked_grad, weight[:, -1 - shift])
            grad_weight[:, -1 - shift] = masked_grad.mul_(x[:, :-shift]).sum((0, 1))
        return grad_x, grad_weight, grad.sum((0, 1)), None


class _Sizes(ctypes.Structure):
    """The struct `Sizes` of the C++ source."""

    _fields_ = [(name, ctypes.c_int64) for name in ("rows", "slots", "channels", "taps", "stride", "threads")]


class _CppConv(torch.autograd.Function):
    """Compute the convolution in C++."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor, layout: SegmentLayout) -> Tensor:
        num_rows, num_slots, channels = x.shape
        if x.stride(2) != 1 or x.stride(0) != num_slots * x.stride(1):
            x = x.contiguous()
        taps = weight.t().contiguous()
        ctx.sizes = _Sizes(num_rows, num_slots, channels, len(taps), x.stride(1), torch.get_num_threads())
        y = torch.empty(x.shape)
        starts = layout.starts
        call_native(_SOURCE, "causal_conv_forward", ctx.sizes, x, taps, bias.contiguous(), starts, y)
        ctx.save_for_backward(x, taps, starts)
        return y

    @staticmethod
    def backward(ctx: Any, *grad_outputs: Tensor) -> tuple[Tensor, Tensor, Tensor, None]:
        x, taps, starts = ctx.saved_tensors
        dx = torch.zeros(x.shape)
        dtaps, dbias = torch.zeros(len(x), *taps.shape), torch.zeros(len(x), x.shape[2])
        dy = grad_outputs[0].contiguous()
        ctx.sizes.threads = torch.get_num_threads()
        call_native(_SOURCE, "causal_conv_backward", ctx.sizes, x, taps, starts, dy, dx, dtaps, dbias)
        return dx, dtaps.sum(0).t(), dbias.sum(0), None
