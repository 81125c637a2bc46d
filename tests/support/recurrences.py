"""Inputs of the recurrences, and comparison with a reference in float64."""

from collections.abc import Callable, Sequence

import torch
from torch import Tensor
from torch.nn import functional as F


def random_seq_idx(generator: torch.Generator, num_rows: int, num_slots: int) -> Tensor:
    """Return (B, L) int32 segment numbers; segments are about seven slots long."""
    starts = torch.rand(num_rows, num_slots, generator=generator) < 0.15
    return starts.cumsum(1).to(torch.int32)


def scan_inputs(
    shape: tuple[int, int, int, int], seed: int
) -> tuple[tuple[Tensor, Tensor, Tensor, Tensor, Tensor], Tensor]:
    """Return float64 u, dt, A, B, C of the recurrence for the shape (B, L, E, N), and the segment numbers."""
    num_rows, num_slots, channels, state = shape
    g = torch.Generator().manual_seed(seed)

    def normal(*sizes: int) -> Tensor:
        return torch.randn(*sizes, generator=g, dtype=torch.float64).float().double()

    inputs = (
        normal(num_rows, num_slots, channels),
        F.softplus(normal(num_rows, num_slots, channels)).float().double(),
        -normal(channels, state).exp().float().double(),
        normal(num_rows, num_slots, state),
        normal(num_rows, num_slots, state),
    )
    return inputs, random_seq_idx(g, num_rows, num_slots)


def assert_same_values_and_gradients(
    ours: Callable[..., Tensor],
    reference: Callable[..., Tensor],
    inputs: Sequence[Tensor],
    dtype: torch.dtype,
    tol: float,
    device: str = "cpu",
) -> None:
    """Compare `ours` in `dtype` with `reference` in float64, relative to the largest value of each tensor."""
    exact_inputs = [t.clone().requires_grad_() for t in inputs]
    our_inputs = [t.to(device, dtype).requires_grad_() for t in inputs]
    exact, got = reference(*exact_inputs), ours(*our_inputs)
    weights = torch.randn(exact.shape, generator=torch.Generator().manual_seed(1), dtype=dtype).to(got.device)
    exact_grads = torch.autograd.grad((exact * weights.to(exact.device)).sum(), exact_inputs)
    our_grads = torch.autograd.grad((got * weights).sum(), our_inputs)
    for a, b in zip([got, *our_grads], [exact, *exact_grads], strict=True):
        assert bool((a.double().cpu() - b).abs().max() <= tol * (b.abs().max() + 1))
