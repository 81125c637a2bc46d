"""Mamba-1's selective scan in plain PyTorch. Time and memory are linear in L.

The scan is time-major and runs in chunks of T slots. The forward saves only the state at the entry of each
chunk, and the backward recomputes the states of one chunk at a time. The working set is a few tensors
(T, B, E, N) for any L.
"""

from typing import Any

import torch
from torch import Tensor

CHUNK_LENGTH = 32  # slots; fastest of 8, 16, 32 on a CPU at B=128, L=200, E=128, N=32
BACKWARD_TENSORS = 4  # temporaries (T, B, E, N) of the backward
_CPU_STATE_ELEMENTS = 1 << 14  # rows * E * N scanned together; their chunks fit in cache


def selective_scan_chunk(
    u: Tensor, dt: Tensor, A: Tensor, B: Tensor, C: Tensor, starts: Tensor, chunk_length: int = CHUNK_LENGTH
) -> Tensor:
    """Compute `selective_scan_ref` in chunks; same arguments and result."""
    rows_at_once = max(1, _CPU_STATE_ELEMENTS // A.numel()) if u.device.type == "cpu" else u.shape[0]
    groups = zip(*(tensor.split(rows_at_once) for tensor in (u, dt, B, C, starts)), strict=True)
    outputs = [_ChunkScan.apply(u, dt, A, B, C, starts, chunk_length) for u, dt, B, C, starts in groups]
    return torch.cat(outputs)


class _ChunkScan(torch.autograd.Function):
    """Scan a group of rows. The backward recomputes the states chunk by chunk."""

    @staticmethod
    def forward(
        ctx: Any, u: Tensor, dt: Tensor, A: Tensor, B: Tensor, C: Tensor, starts: Tensor, chunk_length: int
    ) -> Tensor:
        u, dt, B, C = (tensor.transpose(0, 1).contiguous() for tensor in (u, dt, B, C))
        keep = (~starts).t().to(u.dtype)[:, :, None, None]
        num_slots, num_rows = u.shape[:2]
        y = torch.empty_like(u)
        entries = u.new_empty(-(-num_slots // chunk_length), num_rows, *A.shape)
        state = u.new_zeros(num_rows, *A.shape)
        decay, states = u.new_empty(2, min(chunk_length, num_slots), num_rows, *A.shape)
        for number, begin in enumerate(range(0, num_slots, chunk_length)):
            slots = slice(begin, min(num_slots, begin + chunk_length))
            entries[number] = state
            chunk_states = _run_chunk(u, dt, A, B, keep, slots, state, decay, states)
            torch.matmul(chunk_states, C[slots].unsqueeze(3), out=y[slots].unsqueeze(3))
            state = chunk_states[-1].clone()
        ctx.save_for_backward(u, dt, A, B, C, keep, entries)
        ctx.chunk_length = chunk_length
        return y.transpose(0, 1)

    @staticmethod
    def backward(ctx: Any, *grad_outputs: Tensor) -> tuple[Tensor | None, ...]:
        u, dt, A, B, C, keep, entries = ctx.saved_tensors
        num_slots, num_rows = u.shape[:2]
        dy = grad_outputs[0].transpose(0, 1).contiguous()
        x = dt * u
        dx, ddt, dB, dC, dA = (torch.empty_like(t) for t in (u, dt, B, C, A))
        dA.zero_()
        decay, states, grads, scratch = u.new_empty(
            BACKWARD_TENSORS, min(ctx.chunk_length, num_slots), num_rows, *A.shape
        )
        carried = torch.zeros_like(entries[0])
        for number in reversed(range(len(entries))):
            begin = number * ctx.chunk_length
            slots = slice(begin, min(num_slots, begin + ctx.chunk_length))
            length = slots.stop - begin
            chunk_states = _run_chunk(u, dt, A, B, keep, slots, entries[number], decay, states)
            a, g = decay[:length], grads[:length]
            torch.mul(dy[slots].unsqueeze(3), C[slots].unsqueeze(2), out=g)
            g[-1].add_(carried)
            for t in range(length - 2, -1, -1):
                g[t].addcmul_(a[t + 1], g[t + 1])
            carried = a[0] * g[0]
            torch.matmul(dy[slots].unsqueeze(2), chunk_states, out=dC[slots].unsqueeze(2))
            torch.matmul(x[slots].unsqueeze(2), g, out=dB[slots].unsqueeze(2))
            torch.matmul(g, B[slots].unsqueeze(3), out=dx[slots].unsqueeze(3))
            dlog_a = torch.mul(g, a, out=scratch[:length])
            dlog_a[1:].mul_(chunk_states[:-1])
            dlog_a[0].mul_(entries[number])
            dA.add_(torch.mul(dlog_a, dt[slots].unsqueeze(3), out=g).flatten(0, 1).sum(0))
            torch.sum(dlog_a.mul_(A), 3, out=ddt[slots])
        ddt.addcmul_(dx, u)
        grads_batch_major = (t.transpose(0, 1) for t in (dx.mul_(dt), ddt, dB, dC))
        du, ddt, dB, dC = grads_batch_major
        return du, ddt, dA, dB, dC, None, None


def _run_chunk(
    u: Tensor,
    dt: Tensor,
    A: Tensor,
    B: Tensor,
    keep: Tensor,
    slots: slice,
    entry: Tensor,
    decay: Tensor,
    states: Tensor,
) -> Tensor:
    """Compute the states of one chunk.

    Args:
        u: (L, B, E), time-major like dt, B and C.
        dt: (L, B, E).
        A: (E, N).
        B: (L, B, N).
        keep: (L, B, 1, 1), 0 at segment starts, else 1.
        slots: the slots of the chunk.
        entry: (B, E, N), the state before the chunk.
        decay: (T, B, E, N), overwritten with exp(dt A), 0 at segment starts.
        states: (T, B, E, N), overwritten with the states.

    Returns:
        The part of `states` that belongs to `slots`.
    """
    length = slots.stop - slots.start
    a, h = decay[:length], states[:length]
    torch.mul(dt[slots].unsqueeze(3), A, out=a)
    a.exp_().mul_(keep[slots])
    torch.mul((dt[slots] * u[slots]).unsqueeze(3), B[slots].unsqueeze(2), out=h)
    state = entry
    for a_t, h_t in zip(a.unbind(0), h.unbind(0), strict=True):
        state = h_t.addcmul_(a_t, state)
    return h
