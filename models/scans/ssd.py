"""Mamba-2's recurrence (state space duality) with a reset at each segment's start, in three backends.

    h_t = keep_t * exp(dt_t A) h_{t-1} + dt_t x_t B_t^T        y_t = h_t C_t        per head, A a scalar

Source: Dao and Gu, "Transformers are SSMs", ICML 2024, listing 1.
"""

import torch
from torch import Tensor
from torch.nn import functional as F

from longplay.models.base.config import ScanName
from longplay.models.base.segments import SegmentLayout
from longplay.models.scans.packages import PackageFunction, requested_backend
from longplay.native.tracing import not_traced

CHUNK_LENGTH = 32  # slots; fastest of 16, 32, 64 on a CPU at H=2..8, P=32..64, N=32
_KERNEL_CHUNK_LENGTH = 256  # mamba-ssm's default
KERNEL = PackageFunction("mamba-ssm", "mamba_ssm.ops.triton.ssd_combined", "mamba_chunk_scan_combined")
# With it, the kernels add without atomics if torch.use_deterministic_algorithms is set.
DETERMINISTIC_MODE = PackageFunction("mamba-ssm", "mamba_ssm.utils.determinism", "use_deterministic_mode")


def ssd(
    x: Tensor, dt: Tensor, A: Tensor, B: Tensor, C: Tensor, layout: SegmentLayout, scan: ScanName = "auto"
) -> Tensor:
    """Compute the recurrence with the backend selected by `scan`.

    Args:
        x: (B, L, H, P) float32 or float64; bfloat16 too where `runs_kernel`.
        dt: (B, L, H), non-negative step sizes, of x's dtype, or float32 for bfloat16.
        A: (H,), negative, of dt's dtype.
        B: (B, L, N), shared by all heads, of x's dtype.
        C: (B, L, N), shared by all heads, of x's dtype.
        layout: the segments of the rows.
        scan: "ref" = one slot at a time; "kernel" = mamba-ssm's kernels; "chunk" or "cpp" = chunks in
            PyTorch; "auto" or "triton" = the kernels, written in Triton, for float32 on CUDA, else chunks.

    Returns:
        y, (B, L, H, P).

    Raises:
        ValueError: mamba-ssm is not installed, or `scan` is "kernel" and it does not support these tensors.
    """
    name = requested_backend(scan)
    if runs_kernel(x, scan):
        return ssd_kernel(x, dt, A, B, C, layout)
    if name == "kernel":
        raise ValueError("scan_backend=kernel: requires CUDA and float32 or bfloat16; use scan_backend=auto")
    return (ssd_ref if name == "ref" else ssd_chunk)(x, dt, A, B, C, layout)


def runs_kernel(x: Tensor, scan: ScanName) -> bool:
    """Return whether `ssd` computes tensors like `x` with mamba-ssm's kernels."""
    supported = x.is_cuda and x.dtype in (torch.float32, torch.bfloat16)
    return supported and requested_backend(scan) in ("auto", "kernel", "triton")


def ssd_ref(x: Tensor, dt: Tensor, A: Tensor, B: Tensor, C: Tensor, layout: SegmentLayout) -> Tensor:
    """Compute the recurrence one slot at a time: the reference for tests of the other backends."""
    state = x.new_zeros(x.shape[0], *x.shape[2:], B.shape[2])
    outputs = []
    for t in range(x.shape[1]):
        state = torch.where(layout.starts[:, t, None, None, None], 0.0, state)
        state, y = ssd_step(x[:, t], dt[:, t], A, B[:, t], C[:, t], state)
        outputs.append(y)
    return torch.stack(outputs, dim=1)


def ssd_step(x: Tensor, dt: Tensor, A: Tensor, B: Tensor, C: Tensor, state: Tensor) -> tuple[Tensor, Tensor]:
    """Compute one slot.

    Args:
        x: (B, H, P).
        dt: (B, H).
        A: (H,).
        B: (B, N).
        C: (B, N).
        state: (B, H, P, N).

    Returns:
        The new state (B, H, P, N) and y (B, H, P).
    """
    decay = torch.exp(dt * A)[:, :, None, None]
    state = decay * state + (dt.unsqueeze(2) * x).unsqueeze(3) * B[:, None, None, :]
    return state, (state @ C[:, None, :, None]).squeeze(3)


@not_traced
def ssd_kernel(x: Tensor, dt: Tensor, A: Tensor, B: Tensor, C: Tensor, layout: SegmentLayout) -> Tensor:
    """Compute `ssd` with mamba-ssm's Triton kernels.

    States and sums are float32. The operands of matrix products are rounded to bfloat16 for bfloat16
    tensors, and to TF32 for float32.
    """
    kernel = KERNEL.require()
    seq_idx = layout.seq_idx.to(torch.int32).contiguous()
    return kernel(x, dt, A, B.unsqueeze(2), C.unsqueeze(2), chunk_size=_KERNEL_CHUNK_LENGTH, seq_idx=seq_idx)


def ssd_chunk(
    x: Tensor,
    dt: Tensor,
    A: Tensor,
    B: Tensor,
    C: Tensor,
    layout: SegmentLayout,
    chunk_length: int = CHUNK_LENGTH,
) -> Tensor:
    """Compute `ssd` in chunks of T slots: matrix products within a chunk, a recurrence between chunks.

    The log decays are sums of dt A from the start of the segment in the chunk. They never span segments, so
    rounding errors of one segment do not affect another. Under autocast the operands of the other matrix
    products are rounded to bfloat16; decays and states are float32.
    """
    num_slots, length = x.shape[1], min(chunk_length, x.shape[1])
    chunked = [_to_chunks(tensor, length) for tensor in (x, dt, B, C)]
    x, dt, B, C = chunked  # (B, K, T, ...)
    seq_idx = _to_chunks(layout.seq_idx, length, pad_value=-1)
    pair = (seq_idx.unsqueeze(3) == seq_idx.unsqueeze(2)).tril()  # (B, K, T, T): j <= i in the same segment
    with torch.autocast(x.device.type, enabled=False):  # in bfloat16, differences of the sums would be noise
        decay_sum = (pair.to(dt.dtype) @ (dt * A)).transpose(2, 3)  # (B, K, H, T)
    x = (x * dt.unsqueeze(4)).transpose(2, 3)  # (B, K, H, T, P)

    within = decay_sum.unsqueeze(4) - decay_sum.unsqueeze(3)
    within = within.masked_fill(~pair.unsqueeze(2), -torch.inf).exp_()
    y = ((C @ B.transpose(2, 3)).unsqueeze(2) * within) @ x

    entry_states = _entry_states(x, B, decay_sum, seq_idx)  # (B, K, H, P, N)
    from_entry = torch.exp(decay_sum) * _continues(seq_idx).unsqueeze(2)
    y = y + (C.unsqueeze(2) @ entry_states.transpose(3, 4)) * from_entry.unsqueeze(4)
    return y.transpose(2, 3).flatten(1, 2)[:, :num_slots]


def _entry_states(x: Tensor, B: Tensor, decay_sum: Tensor, seq_idx: Tensor) -> Tensor:
    """Return the state before each chunk, (B, K, H, P, N)."""
    reaches_end = (seq_idx == seq_idx[:, :, -1:]).unsqueeze(2)
    to_end = (decay_sum[..., -1:] - decay_sum).masked_fill(~reaches_end, -torch.inf).exp()
    added = (x * to_end.unsqueeze(4)).transpose(3, 4) @ B.unsqueeze(2)
    kept = torch.exp(decay_sum[..., -1]) * _continues(seq_idx)[:, :, -1:]
    state = torch.zeros_like(added[:, 0])
    states = []
    for kept_k, added_k in zip(kept.unbind(1), added.unbind(1), strict=True):
        states.append(state)
        state = torch.addcmul(added_k, kept_k[:, :, None, None], state)
    return torch.stack(states, dim=1)


def _continues(seq_idx: Tensor) -> Tensor:
    """Return (B, K, T) bool, True where a slot continues the last segment of the previous chunk."""
    previous = torch.cat([seq_idx[:, :1, 0], seq_idx[:, :-1, -1]], dim=1)
    return seq_idx == previous.unsqueeze(2)


def _to_chunks(tensor: Tensor, length: int, pad_value: int = 0) -> Tensor:
    """Split (B, L, ...) into chunks (B, K, T, ...), padded at the end."""
    padding = [0, 0] * (tensor.dim() - 2) + [0, -tensor.shape[1] % length]
    return F.pad(tensor, padding, value=pad_value).unflatten(1, (-1, length))
