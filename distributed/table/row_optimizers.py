"""Optimizers that read and write only the touched rows of a table and of their state."""

import math
from collections.abc import Callable
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
        if rows is None:
            step_size, eps = self._sizes(lr, step)
            exp_avg, exp_avg_sq = self.state["exp_avg"], self.state["exp_avg_sq"]
            exp_avg.lerp_(grads, 1 - self.betas[0])
            exp_avg_sq.mul_(self.betas[1]).addcmul_(grads, grads, value=1 - self.betas[1])
            weight.addcdiv_(exp_avg, exp_avg_sq.sqrt().add_(eps), value=-step_size)
        elif self.runs_kernel(weight, grads):
            self.update_fused(weight, rows, grads, lr=lr, step=step)
        else:
            self.update_rows(weight, rows, grads, lr=lr, step=step)

    def runs_kernel(self, weight: Tensor, grads: Tensor) -> bool:
        """Return whether `step` runs the kernel, which skips negative row numbers."""
        return _use_kernel(lazy_adam_kernel, weight, grads)

    def update_rows(self, weight: Tensor, rows: Tensor, grads: Tensor, *, lr: float, step: int) -> None:
        """Update rows of `weight` by PyTorch operations."""
        beta1, beta2 = self.betas
        step_size, eps = self._sizes(lr, step)
        exp_avg, exp_avg_sq = self.state["exp_avg"], self.state["exp_avg_sq"]
        rows, grads = rows.to(weight.device), grads.to(weight.device)
        first = exp_avg.index_select(0, rows).lerp_(grads, 1 - beta1)
        second = exp_avg_sq.index_select(0, rows).mul_(beta2).addcmul_(grads, grads, value=1 - beta2)
        exp_avg.index_copy_(0, rows, first)
        exp_avg_sq.index_copy_(0, rows, second)
        updated = weight.index_select(0, rows).addcdiv_(first, second.sqrt_().add_(eps), value=-step_size)
        weight.index_copy_(0, rows, updated)

    def update_fused(self, weight: Tensor, rows: Tensor, grads: Tensor, *, lr: float, step: int) -> None:
        """Update rows of `weight` by one kernel."""
        state = self.state["exp_avg"], self.state["exp_avg_sq"]
        triton_kernels.lazy_adam(weight, *state, rows, grads, self.betas, *self._sizes(lr, step))

    def _sizes(self, lr: float, step: int) -> tuple[float, float]:
        """Return the step size and eps, both with Adam's bias corrections."""
        beta1, beta2 = self.betas
        root = math.sqrt(1 - beta2**step)
        return lr * root / (1 - beta1**step), self.eps * root


class RowAdagrad:
    """Adagrad with one accumulator per row: the sum over steps of the row gradient's mean square."""

    def __init__(self, config: RowOptimizerConfig, weight: Tensor) -> None:
        self.eps = config.eps
        self.state = {"sum_sq": weight.new_zeros(weight.shape[0])}

    def step(self, weight: Tensor, rows: Tensor | None, grads: Tensor, *, lr: float, step: int) -> None:
        """Update `weight` in place; arguments as in `LazyAdam.step`."""
        if rows is None:
            rows = torch.arange(grads.shape[0], device=grads.device)
        if self.runs_kernel(weight, grads):
            self.update_fused(weight, rows, grads, lr=lr, step=step)
        else:
            self.update_rows(weight, rows, grads, lr=lr, step=step)

    def runs_kernel(self, weight: Tensor, grads: Tensor) -> bool:
        """Return whether `step` runs the kernel, which skips negative row numbers."""
        return _use_kernel(row_adagrad_kernel, weight, grads)

    def update_rows(self, weight: Tensor, rows: Tensor, grads: Tensor, *, lr: float, step: int) -> None:
        """Update rows of `weight` by PyTorch operations."""
        rows, grads = rows.to(weight.device), grads.to(weight.device)
        total = self.state["sum_sq"].index_select(0, rows).add_(grads.square().mean(1))
        self.state["sum_sq"].index_copy_(0, rows, total)
        scaled = grads / total.sqrt_().add_(self.eps).unsqueeze(1)
        weight.index_copy_(0, rows, weight.index_select(0, rows).add_(scaled, alpha=-lr))

    def update_fused(self, weight: Tensor, rows: Tensor, grads: Tensor, *, lr: float, step: int) -> None:
        """Update rows of `weight` by one kernel."""
        triton_kernels.row_adagrad(weight, self.state["sum_sq"], rows, grads, lr, self.eps)


def lazy_adam_kernel(device: torch.device, width: int) -> bool:
    """Check the fused update against PyTorch's on a small problem on `device`."""
    return _fused_agrees(LazyAdam, device, width)


def row_adagrad_kernel(device: torch.device, width: int) -> bool:
    """Check the fused update against PyTorch's on a small problem on `device`."""
    return _fused_agrees(RowAdagrad, device, width)


def _use_kernel(check: Callable[[torch.device, int], bool], weight: Tensor, grads: Tensor) -> bool:
    """Return whether the fused update works and can access `weight` from the device of `grads`."""
    return triton_kernels.works(check, grads.device, grads.shape[1]) and kernels_can_access(
        weight, grads.device
    )


def _fused_agrees(kind: type[LazyAdam] | type[RowAdagrad], device: torch.device, width: int) -> bool:
    """Return whether two steps of both updates give the same weights and state."""
    generator = torch.Generator().manual_seed(0)
    weight = torch.randn(100, width, generator=generator).to(device)
    rows = torch.randperm(100, generator=generator)[:40].to(device)
    grads = torch.randn(2, 40, width, generator=generator).to(device)
    results = []
    for fused in (True, False):
        updated = weight.clone()
        optimizer = kind(RowOptimizerConfig(), updated)
        update = optimizer.update_fused if fused else optimizer.update_rows
        for number in range(2):
            update(updated, rows, grads[number], lr=0.1, step=number + 1)
        results.append([updated, *optimizer.state.values()])
    return all(torch.allclose(a, b, rtol=1e-5, atol=1e-6) for a, b in zip(*results, strict=True))


def build_row_optimizer(config: RowOptimizerConfig, weight: Tensor) -> LazyAdam | RowAdagrad:
    """Return the optimizer that `config` names for this rank's rows `weight` (R, D)."""
    return (LazyAdam if config.name == "adam" else RowAdagrad)(config, weight)
