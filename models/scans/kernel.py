"""Mamba-1's selective scan with mamba-ssm's CUDA kernel, with exact resets at segment starts.

The kernel takes no segments. To reset the state at the first slot of a segment, dt and u are replaced there
by dt' = K and u' = u dt / K. In float32, exp(K A) = 0 resets the state, and dt' u' = dt u keeps the input.
The gradient of A multiplies rounding errors at the start by K, so K is no larger than needed.
"""

import torch
from torch import Tensor

from longplay.models.scans.packages import PackageFunction

LARGEST_STATE = 256  # the kernel's MAX_DSTATE
_RESET_EXPONENT = 128.0  # exp(-128) is 0 in float32
_LARGEST_RESET = 1e6  # resets for |A| above 1e-4; A starts at -1..-d_state
KERNEL = PackageFunction("mamba-ssm", "mamba_ssm.ops.selective_scan_interface", "selective_scan_fn")


def supports(dtype: torch.dtype, d_state: int) -> bool:
    """Return whether the kernel supports CUDA tensors of this dtype and state size."""
    return dtype == torch.float32 and d_state <= LARGEST_STATE


def selective_scan_kernel(u: Tensor, dt: Tensor, A: Tensor, B: Tensor, C: Tensor, starts: Tensor) -> Tensor:
    """Compute `selective_scan_ref` with the kernel; same arguments and result."""
    kernel = KERNEL.require()
    u, dt = fold_resets(u, dt, A, starts)
    channel_major = (tensor.transpose(1, 2).contiguous() for tensor in (u, dt, B, C))
    u, dt, B, C = channel_major
    return kernel(u, dt, A.contiguous(), B, C).transpose(1, 2)


def fold_resets(u: Tensor, dt: Tensor, A: Tensor, starts: Tensor) -> tuple[Tensor, Tensor]:
    """Encode the resets at `starts` (B, L) bool in u and dt (B, L, E), for a scan with A (E, N)."""
    starts = starts.unsqueeze(2)
    reset = (_RESET_EXPONENT / A.detach().abs().min()).clamp(max=_LARGEST_RESET)
    return torch.where(starts, u * dt / reset, u), torch.where(starts, reset, dt)
