"""A cache on the device of the most frequent rows of a shard in host memory, with their optimizer state.

Few items have most of the events, so most of the rows that a step reads and updates do not cross the bus.
Results do not depend on the cache. The shard in host memory holds every row; the cached ones are out of date
there until `write_back`.
"""

import torch
from torch import Tensor

from longplay.distributed.runtime.waiting import waiting
from longplay.distributed.table import host_memory, triton_kernels
from longplay.distributed.table.row_optimizers import (
    LazyAdam,
    RowAdagrad,
    RowOptimizerConfig,
    build_row_optimizer,
)
from longplay.distributed.table.row_order import RowOrder


class RowCache:
    """Reads and updates rows of a shard, some of which are on the device.

    Args:
        config: the row optimizer.
        shard: (R, D) fp32, in host memory.
        optimizer: updates `shard`; its state is in host memory.
        rows: (C,) int64 on the CPU, the rows of the shard to cache.
        device: the device of the cache.
    """

    def __init__(
        self,
        config: RowOptimizerConfig,
        shard: Tensor,
        optimizer: LazyAdam | RowAdagrad,
        rows: Tensor,
        device: torch.device,
    ) -> None:
        self._shard, self._optimizer, self._rows = shard, optimizer, rows
        self._cached = torch.empty(rows.shape[0], shard.shape[1], device=device)
        self._cached_optimizer = build_row_optimizer(config, self._cached)
        slots = torch.full((shard.shape[0],), -1, dtype=torch.int32)
        slots[rows] = torch.arange(rows.shape[0], dtype=torch.int32)
        self._slots = slots.to(device)  # of each row of the shard; -1 = not cached
        self._is_newer = False
        self.load()

    @property
    def num_bytes(self) -> int:
        """Bytes of the cache on the device."""
        kept = self._slots, self._cached, *self._cached_optimizer.state.values()
        return sum(tensor.numel() * tensor.element_size() for tensor in kept)

    def load(self) -> None:
        """Copy the cached rows and their optimizer state from host memory."""
        for cached, whole in self._pairs():
            cached.copy_(whole.index_select(0, self._rows))
        self._is_newer = False

    def write_back(self) -> None:
        """Copy the cached rows and their optimizer state to host memory, if they have changed."""
        if not self._is_newer:
            return
        for cached, whole in self._pairs():
            with waiting("the cached rows"):
                values = cached.to(whole.device)
            whole.index_copy_(0, self._rows, values)
        self._is_newer = False

    def take_rows(self, rows: Tensor) -> Tensor:
        """Return rows (n, D) of the shard by their numbers (n,) int64, on the device of `rows`."""
        slots = self._slots.index_select(0, rows).long()
        out = torch.empty(rows.shape[0], self._shard.shape[1], device=rows.device)
        if host_memory.kernels_take_rows(self._shard, rows.device):
            triton_kernels.take_rows(self._shard, _only_uncached(rows, slots), out)
            return triton_kernels.take_rows(self._cached, slots, out)
        there, here = _split(slots)
        out[there] = host_memory.take_rows(self._shard, rows[there])
        out[here] = self._cached[slots[here]]
        return out

    def update(self, rows: Tensor, grads: Tensor, *, lr: float, step: int) -> None:
        """Update rows of the shard; arguments as in `LazyAdam.step`."""
        self._is_newer = True
        slots = self._slots.index_select(0, rows).long()
        sizes = {"lr": lr, "step": step}
        if self._optimizer.runs_kernel(self._shard, grads):
            self._optimizer.step(self._shard, _only_uncached(rows, slots), grads, **sizes)
            self._cached_optimizer.step(self._cached, slots, grads, **sizes)
            return
        there, here = _split(slots)
        self._optimizer.step(self._shard, rows[there], grads[there], **sizes)
        self._cached_optimizer.step(self._cached, slots[here], grads[here], **sizes)

    def _pairs(self) -> list[tuple[Tensor, Tensor]]:
        """Return the tensors of the cache, each with the tensor in host memory that it caches rows of."""
        cached, whole = self._cached_optimizer.state, self._optimizer.state
        return [(self._cached, self._shard), *((cached[name], whole[name]) for name in whole)]


def most_frequent_rows(order: RowOrder, first_row: int, num_rows: int, count: int) -> Tensor:
    """Return the rows, counted from `first_row`, of the `count` most frequent items among `num_rows`."""
    items = order.items(torch.arange(first_row, first_row + num_rows))
    return torch.topk(items, min(count, num_rows), largest=False).indices


def _only_uncached(rows: Tensor, slots: Tensor) -> Tensor:
    """Return `rows` with -1, which the kernels skip, in place of cached rows; the host need not wait."""
    return torch.where(slots < 0, rows, -1)


def _split(slots: Tensor) -> tuple[Tensor, Tensor]:
    """Return the indices into `slots` of the rows in host memory, and of the cached ones."""
    with waiting("the cached rows"):
        return (slots < 0).nonzero().squeeze(1), (slots >= 0).nonzero().squeeze(1)
