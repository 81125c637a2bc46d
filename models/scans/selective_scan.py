"""Mamba-1's selective scan with a reset at each segment's start, and the choice of its backend.

    h_t = keep_t * exp(dt_t A) h_{t-1} + dt_t u_t B_t        y_t = C_t . h_t

Source: Gu and Dao, "Mamba: linear-time sequence modeling with selective state spaces", 2023, algorithm 2. The
caller applies the softplus of dt, the D skip and the z gate. The backend "triton" includes them; the mixer
calls `selective_scan_triton` itself.
"""

import torch
from torch import Tensor

from longplay.models.base.config import ScanName
from longplay.models.scans import cpp as scan_cpp
from longplay.models.scans import kernel as scan_kernel
from longplay.models.scans.chunk import selective_scan_chunk
from longplay.models.scans.packages import requested_backend
from longplay.native.triton_runtime import can_run_triton


def selective_scan(
    u: Tensor, dt: Tensor, A: Tensor, B: Tensor, C: Tensor, starts: Tensor, scan: ScanName = "auto"
) -> Tensor:
    """Compute the scan with the backend selected by `scan`.

    Args:
        u: (B, L, E) float32 or float64, the output of the convolution.
        dt: (B, L, E), non-negative step sizes, of u's dtype.
        A: (E, N), negative, of u's dtype.
        B: (B, L, N), of u's dtype.
        C: (B, L, N), of u's dtype.
        starts: (B, L) bool, True at the first slot of each segment.
        scan: name of a backend except "triton", or on a CPU "auto"; see `choose_backend`.

    Returns:
        y, (B, L, E).

    Raises:
        ValueError: the backend does not support these tensors, or LONGPLAY_SCAN is not a backend.
    """
    d_state = A.shape[1]
    name = choose_backend(scan, device_type=u.device.type, dtype=u.dtype, d_state=d_state)
    _check_backend(name, u, d_state)
    assert name != "triton", "the mixer calls selective_scan_triton"
    if name == "kernel":
        return scan_kernel.selective_scan_kernel(u, dt, A, B, C, starts)
    if name == "cpp":
        return scan_cpp.selective_scan_cpp(u, dt, A, B, C, starts)
    if name == "chunk":
        return selective_scan_chunk(u, dt, A, B, C, starts)
    return selective_scan_ref(u, dt, A, B, C, starts)


def selective_scan_ref(u: Tensor, dt: Tensor, A: Tensor, B: Tensor, C: Tensor, starts: Tensor) -> Tensor:
    """Compute the scan one slot at a time: the reference for tests of the other backends."""
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
    """Compute one slot.

    Args:
        u: (B, E).
        dt: (B, E).
        A: (E, N).
        B: (B, N).
        C: (B, N).
        state: (B, E, N).

    Returns:
        The new state (B, E, N) and y (B, E).
    """
    state = torch.exp(dt.unsqueeze(2) * A) * state + (dt * u).unsqueeze(2) * B.unsqueeze(1)
    return state, (state @ C.unsqueeze(2)).squeeze(2)


def choose_backend(scan: ScanName, *, device_type: str, dtype: torch.dtype, d_state: int) -> ScanName:
    """Resolve "auto" to a backend; return any other name unchanged.

    "auto" is "triton" for float32 on CUDA, or "kernel" if Longplay's Triton kernels are disabled; "cpp" for
    float32 on the CPU if a compiler is available; otherwise "chunk". The environment variable LONGPLAY_SCAN
    overrides "auto". On an H100, "triton" takes 0.3 to 0.5 times as long as "kernel" (benchmarks/results).

    Args:
        scan: the setting `scan_backend`.
        device_type: "cpu" or "cuda".
        dtype: dtype of the scan's inputs.
        d_state: state size N per channel.

    Raises:
        ValueError: LONGPLAY_SCAN is not a backend.
    """
    scan = requested_backend(scan)
    if scan != "auto":
        return scan
    if device_type == "cuda" and dtype == torch.float32 and can_run_triton("cuda"):
        return "triton"
    if device_type == "cuda" and scan_kernel.supports(dtype, d_state):
        return "kernel"
    if device_type == "cpu" and dtype == torch.float32 and scan_cpp.is_available(d_state):
        return "cpp"
    return "chunk"


def _check_backend(name: ScanName, u: Tensor, d_state: int) -> None:
    """Raise ValueError if the backend does not support these tensors."""
    if name == "kernel" and not (u.is_cuda and scan_kernel.supports(u.dtype, d_state)):
        raise ValueError(
            "scan_backend=kernel: requires CUDA, float32 and "
            f"d_state up to {scan_kernel.LARGEST_STATE}; use scan_backend=auto"
        )
    if name == "cpp" and not (
        u.device.type == "cpu" and u.dtype == torch.float32 and scan_cpp.is_available(d_state)
    ):
        raise ValueError(
            "scan_backend=cpp: requires a C++ compiler, the CPU, float32 and "
            f"d_state up to {scan_cpp.LARGEST_STATE}; use scan_backend=auto"
        )
