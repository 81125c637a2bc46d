"""The functions of the CUDA packages on the CPU: recorded signatures, upstream's checks, and their results.

The checks are those of csrc/causal_conv1d.cpp in causal-conv1d 1.7.0, and of
csrc/selective_scan/selective_scan.cpp and ops/triton/ssd_combined.py in mamba-ssm 2.3.2.post1.
"""

import ast
import importlib.metadata
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from longplay.models.base.segments import SegmentLayout
from longplay.models.mixers.causal_conv import KERNEL as CONV
from longplay.models.scans.kernel import KERNEL as SCAN
from longplay.models.scans.packages import PackageFunction
from longplay.models.scans.selective_scan import selective_scan_ref
from longplay.models.scans.ssd import KERNEL as SSD
from longplay.models.scans.ssd import ssd_ref

# Of the pinned releases, as Python source; `test_recorded_signatures_are_those_of_the_installed_packages`.
SIGNATURES = {
    CONV: "x, weight, bias=None, seq_idx=None, initial_states=None, return_final_states=False, "
    "final_states_out=None, activation=None",
    SCAN: "u, delta, A, B, C, D=None, z=None, delta_bias=None, delta_softplus=False, return_last_state=False",
    SSD: "x, dt, A, B, C, chunk_size, D=None, z=None, dt_bias=None, initial_states=None, seq_idx=None, "
    "cu_seqlens=None, dt_softplus=False, dt_limit=(0.0, float('inf')), return_final_states=False, "
    "return_varlen_states=False",
}
_FILES = {
    CONV: "causal_conv1d/causal_conv1d_interface.py",
    SCAN: "mamba_ssm/ops/selective_scan_interface.py",
    SSD: "mamba_ssm/ops/triton/ssd_combined.py",
}
_FLOATS = (torch.float32, torch.float16, torch.bfloat16)


def installed_signature(function: PackageFunction) -> str | None:
    """Return the signature in the installed package's source, without importing it; None if not installed."""
    try:
        files = importlib.metadata.files(function.package) or []
    except importlib.metadata.PackageNotFoundError:
        return None
    (source,) = (file.read_text() for file in files if str(file) == _FILES[function])
    for node in ast.parse(source).body:
        if isinstance(node, ast.FunctionDef) and node.name == function.name:
            return ast.unparse(node.args)
    return "not defined"


def causal_conv1d_fn(x: Tensor, weight: Tensor, bias: Tensor, **options: Any) -> Tensor:
    """Stand for causal-conv1d's function, with segments and SiLU."""
    assert options.keys() == {"seq_idx", "activation"}
    assert options["activation"] == "silu"
    return _CheckedConv.apply(x, weight, bias, options["seq_idx"])


def selective_scan_fn(u: Tensor, delta: Tensor, A: Tensor, B: Tensor, C: Tensor) -> Tensor:
    """Stand for mamba-ssm's function: (B, E, L) in and out, B and C (B, N, L)."""
    batch, dim, length = u.shape
    assert u.dtype == delta.dtype == B.dtype == C.dtype
    assert u.dtype in _FLOATS
    assert A.dtype == torch.float32
    assert A.shape[1] <= 256
    assert delta.shape == u.shape
    assert A.shape[0] == dim
    assert B.shape == C.shape == (batch, A.shape[1], length)
    for tensor in (u, delta, B, C):
        assert tensor.stride(-1) == 1 or tensor.shape[-1] == 1
    u, delta, B, C = (tensor.transpose(1, 2) for tensor in (u, delta, B, C))
    starts = torch.zeros(batch, length, dtype=torch.bool)  # the kernel knows no segments
    return selective_scan_ref(u, delta, A, B, C, starts).transpose(1, 2)


def mamba_chunk_scan_combined(
    x: Tensor, dt: Tensor, A: Tensor, B: Tensor, C: Tensor, chunk_size: int, *, seq_idx: Tensor
) -> Tensor:
    """Stand for mamba-ssm's function with one group of heads."""
    batch, length, heads, _ = x.shape
    assert dt.shape == (batch, length, heads)
    assert A.shape == (heads,)
    assert B.shape == C.shape
    assert B.shape[:3] == (batch, length, 1)
    assert x.stride(-1) == 1 or x.stride(1) == 1
    assert seq_idx.shape == (batch, length)
    assert seq_idx.dtype == torch.int32
    assert chunk_size & (chunk_size - 1) == 0
    return ssd_ref(x, dt, A, B.squeeze(2), C.squeeze(2), SegmentLayout(seq_idx))


STAND_INS = {CONV: causal_conv1d_fn, SCAN: selective_scan_fn, SSD: mamba_chunk_scan_combined}


class _CheckedConv(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor, seq_idx: Tensor) -> Tensor:
        (batch, dim, length), width = x.shape, weight.shape[1]
        assert {x.dtype, weight.dtype} <= set(_FLOATS)
        assert weight.shape == (dim, width)
        assert 2 <= width <= 4
        _check_channels_last(x)
        assert bias.dtype == weight.dtype
        assert bias.shape == (dim,)
        assert bias.stride(-1) == 1
        assert seq_idx.shape == (batch, length)
        assert seq_idx.dtype == torch.int32
        assert seq_idx.is_contiguous()
        ctx.save_for_backward(x, weight, bias, seq_idx)
        return _conv_silu(x, weight, bias, seq_idx)

    @staticmethod
    def backward(ctx: Any, *grad_outputs: Tensor) -> tuple[Tensor | None, ...]:
        x, weight, bias, seq_idx = ctx.saved_tensors
        (dout,) = grad_outputs
        if dout.stride(1) != 1:
            dout = dout.transpose(1, 2).contiguous().transpose(1, 2)
        assert dout.shape == x.shape
        assert dout.dtype == x.dtype
        _check_channels_last(dout)
        inputs = [tensor.detach().requires_grad_() for tensor in (x, weight, bias)]
        with torch.enable_grad():
            out = _conv_silu(*inputs, seq_idx=seq_idx)
        return *torch.autograd.grad(out, inputs, dout), None


def _check_channels_last(x: Tensor) -> None:
    """Check what the kernels need of a channels-last input with segments."""
    assert x.stride(1) == 1
    assert x.stride(2) > 1
    assert x.shape[1] % 8 == 0
    assert x.stride(2) % 8 == 0
    assert x.stride(0) % 8 == 0
    assert x.data_ptr() % 16 == 0, "the kernels load 16 bytes at once"


def _conv_silu(x: Tensor, weight: Tensor, bias: Tensor, seq_idx: Tensor) -> Tensor:
    """Compute in float32, as the kernel does, one tap at a time; return channels-last, of x's dtype."""
    length, width = x.shape[2], weight.shape[1]
    total = bias.float()[:, None] + weight.float()[:, -1:] * x.float()
    for shift in range(1, min(width, length)):
        same = (seq_idx[:, shift:] == seq_idx[:, :-shift])[:, None]
        earlier = x[:, :, :-shift].float() * same * weight.float()[:, -1 - shift, None]
        total = total + F.pad(earlier, (shift, 0))
    return F.silu(total).to(x.dtype).transpose(1, 2).contiguous().transpose(1, 2)
