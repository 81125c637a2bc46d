"""Optimizers that read and write only the touched rows of a table and of their state."""

import math
from typing import Literal

import torch
from torch import Tensor

from longplay.common.settings import PositiveFloat, Probability, settings_class
from longplay.distributed.table import triton_kernels
from longplay.distributed.table.host_memory import kernels_can_access


@settings_class
class RowOptimizerConfig:
    """The optimizer of the touched rows.

    Attributes:
        name: adam keeps two moments per weight (8 * d_model bytes per row); adagrad one number per row (4
            bytes).
        betas: Decay rates of adam's two moments.
        eps: Term added to the denominator.
    """

    name: Literal["adam", "adagrad"] = "adam"
    betas: tuple[Probability, Probability] = (0.9, 0.999)
    eps: PositiveFloat = 1e-8


class LazyAdam:
    """Adam on touched rows: an untouched row keeps its weight and its moments, as in torch.optim.SparseAdam.

    Bias correction counts the steps of the table, not those of a row. If every step touches every row, this
    is exactly dense Adam.
    """

    def __init__(self, config: RowOptimizerConfig, weight: Tensor) -> None:
        self.betas, self.eps = config.betas, config.eps
        self.state = {"exp_avg": torch.zeros_like(weight), "exp_avg_sq": torch.zeros_like(weight)}

    def step(self, weight: Tensor, rows: Tensor | None, grads: Tensor, *, lr: float, step: int) -> None:
        """Update `weight` in place.

        Args:
            weight: (R, D) this rank's rows; in page-locked host memory or on the device of `grads`.
            rows: (U,) distinct row numbers, or None for all rows in order.
            grads: (U, D) their gradients.
            lr: learning rate.
            step: number of the update, from 1.
        """
        beta1, beta2 = self.betas
        step_size = lr * math.sqrt(1 - beta2**step) / (1 - beta1**step)
        eps = self.eps * math.sqrt(1 - beta2**step)
        exp_avg, exp_avg_sq = self.state["exp_avg"], self.state["exp_avg_sq"]
        if rows is None:
            exp_avg.lerp_(grads, 1 - beta1)
            exp_avg_sq.mul_(beta2).addcmul_(grads, grads, value=1 - beta2)
            weight.addcdiv_(exp_avg, exp_avg_sq.sqrt().add_(eps), value=-step_size)
            return
        if triton_kernels.works(lazy_adam_kernel, grads.device) and kernels_can_access(weight, grads.device):
            triton_kernels.lazy_adam(
                weight,
                exp_avg,
                exp_avg_sq,
                rows,
                grads.contiguous(),
                betas=self.betas,
                step_size=step_size,
                eps=eps,
            )
            return
        rows, grads = rows.to(weight.device), grads.to(weight.device)
        first = exp_avg.index_select(0, rows).lerp_(grads, 1 - beta1)
        second = exp_avg_sq.index_select(0, rows).mul_(beta2).addcmul_(grads, grads, value=1 - beta2)
        exp_avg.index_copy_(0, rows, first)
        exp_avg_sq.index_copy_(0, rows, second)
        updated = weight.index_select(0, rows).addcdiv_(first, second.sqrt_().add_(eps), value=-step_size)
        weight.index_copy_(0, rows, updated)


def lazy_adam_kernel(device: torch.device) -> bool:
    """Check the fused update against PyTorch on a small problem on `device`."""
    generator = torch.Generator().manual_seed(0)
    weight, first, grads = (torch.randn(n, 24, generator=generator).to(device) for n in (100, 100, 40))
    second = first.square()
    rows = torch.randperm(100, generator=generator)[:40].to(device)
    expected = [weight.clone(), first.clone(), second.clone()]
    triton_kernels.lazy_adam(weight, first, second, rows, grads, betas=(0.9, 0.999), step_size=0.1, eps=1e-8)
    expected[1][rows] = torch.lerp(expected[1][rows], grads, 0.1)
    expected[2][rows] = expected[2][rows] * 0.999 + 0.001 * grads.square()
    expected[0][rows] -= 0.1 * expected[1][rows] / (expected[2][rows].sqrt() + 1e-8)
    found = [weight, first, second]
    return all(torch.allclose(a, b, rtol=1e-5, atol=1e-6) for a, b in zip(found, expected, strict=True))


class RowAdagrad:
    """Adagrad with one accumulator per row: the sum over steps of the row gradient's mean square."""

    def __init__(self, config: RowOptimizerConfig, weight: Tensor) -> None:
        self.eps = config.eps
        self.state = {"sum_sq": weight.new_zeros(weight.shape[0])}

    def step(self, weight: Tensor, rows: Tensor | None, grads: Tensor, *, lr: float, step: int) -> None:
        """Update `weight` in place; arguments as in `LazyAdam.step`."""
        if rows is None:
            rows = torch.arange(grads.shape[0], device=grads.device)
        if triton_kernels.works(row_adagrad_kernel, grads.device) and kernels_can_access(
            weight, grads.device
        ):
            triton_kernels.row_adagrad(
                weight, self.state["sum_sq"], rows, grads.contiguous(), step_size=lr, eps=self.eps
            )
            return
        rows, grads = rows.to(weight.device), grads.to(weight.device)
        total = self.state["sum_sq"].index_select(0, rows).add_(grads.square().mean(1))
        self.state["sum_sq"].index_copy_(0, rows, total)
        scaled = grads / total.sqrt_().add_(self.eps).unsqueeze(1)
        weight.index_copy_(0, rows, weight.index_select(0, rows).add_(scaled, alpha=-lr))


def row_adagrad_kernel(device: torch.device) -> bool:
    """Check the fused update against PyTorch on a small problem on `device`."""
    generator = torch.Generator().manual_seed(0)
    weight, grads = (torch.randn(n, 24, generator=generator).to(device) for n in (100, 40))
    total = torch.rand(100, generator=generator).to(device)
    rows = torch.randperm(100, generator=generator)[:40].to(device)
    expected = [weight.clone(), total.clone()]
    triton_kernels.row_adagrad(weight, total, rows, grads, step_size=0.1, eps=1e-8)
    expected[1][rows] += grads.square().mean(1)
    expected[0][rows] -= 0.1 * grads / (expected[1][rows].sqrt() + 1e-8).unsqueeze(1)
    return all(
        torch.allclose(a, b, rtol=1e-5, atol=1e-6) for a, b in zip([weight, total], expected, strict=True)
    )


def build_row_optimizer(config: RowOptimizerConfig, weight: Tensor) -> LazyAdam | RowAdagrad:
    """Return the optimizer that `config` names for this rank's rows `weight` (R, D)."""
    return (LazyAdam if config.name == "adam" else RowAdagrad)(config, weight)
