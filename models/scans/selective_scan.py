"""The recurrence of Mamba-1 with a reset at each segment's start, in four equivalent forms.

    h_t = keep_t * exp(dt_t A) h_{t-1} + dt_t u_t B_t        y_t = C_t . h_t

Source: Gu and Dao, "Mamba: linear-time sequence modeling with selective state spaces", 2023, algorithm 2. The
softplus of dt, the D skip and the z gate are applied outside.
"""

import logging
import os
from typing import get_args

import torch
from torch import Tensor

from longplay.models.base.config import ScanName
from longplay.models.scans import cpp as scan_cpp
from longplay.models.scans import kernel as scan_kernel
from longplay.models.scans.chunk import selective_scan_chunk

_log = logging.getLogger(__name__)
_SCAN_VARIABLE = "LONGPLAY_SCAN"


def selective_scan(
    u: Tensor, dt: Tensor, A: Tensor, B: Tensor, C: Tensor, starts: Tensor, scan: ScanName = "auto"
) -> Tensor:
    """The scan by the form named, or by the fastest one that is available here.

    Args:
        u: (B, L, E) float32 or float64, the convolved input.
        dt: (B, L, E), the step size, at least 0, of u's dtype.
        A: (E, N), negative, of u's dtype.
        B: (B, L, N), of u's dtype.
        C: (B, L, N), of u's dtype.
        starts: (B, L) bool, True at each segment's first slot, where the state is forgotten.
        scan: "auto" is the kernel on CUDA, else C++ in float32, each where it can be had, else the chunk; the
            environment variable LONGPLAY_SCAN overrides "auto".

    Returns:
        (B, L, E), y.

    Raises:
        ValueError: if LONGPLAY_SCAN names no form, or the form asked for cannot run here.
    """
    name = _choose(u, A.shape[1], scan)
    if name == "kernel":
        return scan_kernel.selective_scan_kernel(u, dt, A, B, C, starts)
    if name == "cpp":
        return scan_cpp.selective_scan_cpp(u, dt, A, B, C, starts)
    if name == "chunk":
        return selective_scan_chunk(u, dt, A, B, C, starts)
    return selective_scan_ref(u, dt, A, B, C, starts)


def selective_scan_ref(u: Tensor, dt: Tensor, A: Tensor, B: Tensor, C: Tensor, starts: Tensor) -> Tensor:
    """The scan one slot at a time, by autograd: the definition the others are tested against."""
    state = u.new_zeros(u.shape[0], *A.shape)
    outputs = []
    for t in range(u.shape[1]):
        state = torch.where(starts[:, t, None, None], 0.0, state)
        state, y = selective_step(u[:, t], dt[:, t], A, B[:, t], C[:, t], state)
        outputs.append(y)
    return torch.stack(outputs, dim=1)


def selective_step(
    u: Tensor, dt: Tensor, A: Tensor, B: Tensor, C: Tensor, state: Tensor
) -> tuple[Tensor, Tensor]:
    """One slot of the scan: u, dt (B, E), B, C (B, N), state (B, E, N) -> the new state and y (B, E)."""
    state = torch.exp(dt.unsqueeze(2) * A) * state + (dt * u).unsqueeze(2) * B.unsqueeze(1)
    return state, (state @ C.unsqueeze(2)).squeeze(2)


def _choose(u: Tensor, d_state: int, scan: ScanName) -> ScanName:
    """The form that will run for these inputs."""
    if scan == "auto":
        scan = _from_environment()
    if scan == "auto":
        if u.is_cuda and scan_kernel.is_available(u.dtype, d_state):
            return "kernel"
        if not u.is_cuda and u.dtype == torch.float32 and scan_cpp.is_available(d_state):
            return "cpp"
        return "chunk"
    if scan == "kernel" and not (u.is_cuda and scan_kernel.is_available(u.dtype, d_state)):
        raise ValueError(
            "scan_backend=kernel: needs mamba-ssm, CUDA, float32 and "
            f"d_state up to {scan_kernel.LARGEST_STATE}; use scan_backend=auto"
        )
    if scan == "cpp" and not (
        u.device.type == "cpu" and u.dtype == torch.float32 and scan_cpp.is_available(d_state)
    ):
        raise ValueError("scan_backend=cpp: needs a C++ compiler, the CPU and float32; use scan_backend=auto")
    return scan


def _from_environment() -> ScanName:
    name = os.environ.get(_SCAN_VARIABLE, "auto")
    for known in get_args(ScanName):
        if name == known:
            return known
    raise ValueError(f"{_SCAN_VARIABLE}={name!r}: must be one of {', '.join(get_args(ScanName))}")
