"""Mamba-1's selective scan in C++ (`selective_scan.cpp`). Needs a compiler."""

import ctypes
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from longplay.native.loading import call_native, load_native

_SOURCE = Path(__file__).with_name("selective_scan.cpp")
_LANES, _CHUNK_LENGTH, LARGEST_STATE = 8, 32, 256  # kLanes, kChunk, kLanes * kMaxVectors of the C++


def is_available(d_state: int) -> bool:
    """Return whether the C++ supports float32 CPU tensors of this state size. May compile it."""
    return d_state <= LARGEST_STATE and load_native(_SOURCE) is not None


def selective_scan_cpp(u: Tensor, dt: Tensor, A: Tensor, B: Tensor, C: Tensor, starts: Tensor) -> Tensor:
    """Compute `selective_scan_ref` for float32 CPU tensors; same arguments and result."""
    padding = -A.shape[1] % _LANES
    if padding:
        A, B, C = (F.pad(tensor, (0, padding)) for tensor in (A, B, C))
    return _CppScan.apply(u, dt, A, B, C, starts, torch.is_grad_enabled())


class _Sizes(ctypes.Structure):
    """The struct `Sizes` of the C++ source."""

    _fields_ = [
        (name, ctypes.c_int64)
        for name in ("rows", "slots", "channels", "state", "chunks", "parts", "threads")
    ]


class _CppScan(torch.autograd.Function):
    """Scan in C++. The forward saves the state at the entry of each chunk."""

    @staticmethod
    def forward(
        ctx: Any, u: Tensor, dt: Tensor, A: Tensor, B: Tensor, C: Tensor, starts: Tensor, with_grad: bool
    ) -> Tensor:
        inputs = [tensor.contiguous() for tensor in (u, dt, A, B, C, starts)]
        ctx.sizes = sizes = _sizes_of(u, A, with_grad)
        y = torch.empty_like(inputs[0])
        entries = u.new_empty(sizes.rows, sizes.chunks, sizes.channels, sizes.state)
        call_native(_SOURCE, "selective_scan_forward", sizes, *inputs, y, entries)
        ctx.save_for_backward(*inputs, entries)
        return y

    @staticmethod
    def backward(ctx: Any, *grad_outputs: Tensor) -> tuple[Tensor | None, ...]:
        u, dt, A, B, *_ = ctx.saved_tensors
        sizes = ctx.sizes
        sizes.threads = torch.get_num_threads()
        du, ddt = torch.empty_like(u), torch.empty_like(dt)
        dA_of_row, carried = A.new_zeros(2, sizes.rows, *A.shape)
        dB_of_part, dC_of_part = B.new_zeros(2, sizes.parts, *B.shape)
        outputs = (du, ddt, dA_of_row, dB_of_part, dC_of_part, carried)
        call_native(
            _SOURCE,
            "selective_scan_backward",
            sizes,
            *ctx.saved_tensors,
            grad_outputs[0].contiguous(),
            *outputs,
        )
        return du, ddt, dA_of_row.sum(0), dB_of_part.sum(0), dC_of_part.sum(0), None, None


def _sizes_of(u: Tensor, A: Tensor, with_grad: bool) -> _Sizes:
    num_rows, num_slots, channels = u.shape
    # The number of parts determines the order of sums, so it must not depend on the number of threads.
    parts = 1 if num_rows >= 16 else min(8, -(-channels // 16))
    chunks = -(-num_slots // _CHUNK_LENGTH) if with_grad else 1
    return _Sizes(num_rows, num_slots, channels, A.shape[1], chunks, parts, torch.get_num_threads())
