"""The recurrence of Mamba-1 with a reset at each segment's start, and the choice among its equivalent forms.

    h_t = keep_t * exp(dt_t A) h_{t-1} + dt_t u_t B_t        y_t = C_t . h_t

Source: Gu and Dao, "Mamba: linear-time sequence modeling with selective state spaces", 2023, algorithm 2. The
softplus of dt, the D skip and the z gate are applied outside.
"""

import os
from typing import get_args

import torch
from torch import Tensor

from longplay.models.base.config import ScanName
from longplay.models.scans import cpp as scan_cpp
from longplay.models.scans import kernel as scan_kernel
from longplay.models.scans.chunk import selective_scan_chunk

_SCAN_VARIABLE = "LONGPLAY_SCAN"


def selective_scan(
    u: Tensor, dt: Tensor, A: Tensor, B: Tensor, C: Tensor, starts: Tensor, scan: ScanName = "auto"
) -> Tensor:
    """Compute the scan by the form that `scan` names.

    Args:
        u: (B, L, E) float32 or float64, the convolved input.
        dt: (B, L, E), the step size, at least 0, of u's dtype.
        A: (E, N), negative, of u's dtype.
        B: (B, L, N), of u's dtype.
        C: (B, L, N), of u's dtype.
        starts: (B, L) bool, True at each segment's first slot, where the state is reset.
        scan: a form, or "auto" for the fastest available one, see `choose_form`.

    Returns:
        (B, L, E), y.

    Raises:
        ValueError: the form named cannot compute these tensors, or LONGPLAY_SCAN names no form.
    """
    d_state = A.shape[1]
    name = choose_form(scan, device_type=u.device.type, dtype=u.dtype, d_state=d_state)
    _check_form(name, u, d_state)
    if name == "kernel":
        return scan_kernel.selective_scan_kernel(u, dt, A, B, C, starts)
    if name == "cpp":
        return scan_cpp.selective_scan_cpp(u, dt, A, B, C, starts)
    if name == "chunk":
        return selective_scan_chunk(u, dt, A, B, C, starts)
    return selective_scan_ref(u, dt, A, B, C, starts)


def selective_scan_ref(u: Tensor, dt: Tensor, A: Tensor, B: Tensor, C: Tensor, starts: Tensor) -> Tensor:
    """Compute the scan one slot at a time by autograd: the reference for the tests of the other forms."""
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
    """Compute one slot: u, dt (B, E), A (E, N), B, C (B, N), state (B, E, N) -> new state, y (B, E)."""
    state = torch.exp(dt.unsqueeze(2) * A) * state + (dt * u).unsqueeze(2) * B.unsqueeze(1)
    return state, (state @ C.unsqueeze(2)).squeeze(2)


def choose_form(scan: ScanName, *, device_type: str, dtype: torch.dtype, d_state: int) -> ScanName:
    """Return the form that `scan` selects.

    "auto" is the CUDA kernel on a GPU and C++ for float32 on the CPU, if they are available, and the chunked
    form otherwise. Every other name selects itself. The environment variable LONGPLAY_SCAN replaces "auto".

    Args:
        scan: the setting `scan_backend`.
        device_type: "cpu" or "cuda".
        dtype: of the scan's inputs.
        d_state: state per channel.

    Raises:
        ValueError: LONGPLAY_SCAN names no form.
    """
    if scan == "auto":
        scan = _from_environment()
    if scan != "auto":
        return scan
    if device_type == "cuda" and scan_kernel.is_available(dtype, d_state):
        return "kernel"
    if device_type == "cpu" and dtype == torch.float32 and scan_cpp.is_available(d_state):
        return "cpp"
    return "chunk"


def _check_form(name: ScanName, u: Tensor, d_state: int) -> None:
    """Check that the form `name` can compute these tensors."""
    if name == "kernel" and not (u.is_cuda and scan_kernel.is_available(u.dtype, d_state)):
        raise ValueError(
            "scan_backend=kernel: needs mamba-ssm, CUDA, float32 and "
            f"d_state up to {scan_kernel.LARGEST_STATE}; use scan_backend=auto"
        )
    if name == "cpp" and not (
        u.device.type == "cpu" and u.dtype == torch.float32 and scan_cpp.is_available(d_state)
    ):
        raise ValueError("scan_backend=cpp: needs a C++ compiler, the CPU and float32; use scan_backend=auto")


def _from_environment() -> ScanName:
    name = os.environ.get(_SCAN_VARIABLE, "auto")
    for known in get_args(ScanName):
        if name == known:
            return known
    raise ValueError(f"{_SCAN_VARIABLE}={name!r}: must be one of {', '.join(get_args(ScanName))}")
