"""The item table: one ZeRO-3 parameter, served and updated from its partitions; only touched rows travel.

DeepSpeed owns the parameter and its partitioning in both update modes. What differs is who updates it:

* `row_sparse`: the table is frozen to DeepSpeed's optimizer. The owner of a row updates it in place with a
  row optimizer, so the work and the traffic of a step follow the rows it touched, never the table.
* `zero_dense`: the summed row gradients are written into ZeRO-3's own gradient partition and DeepSpeed's Adam
  updates every row: exact dense Adam, for small tables and as a reference.
"""

import math
from dataclasses import field
from typing import Literal

import torch
from torch import Tensor, nn

from longplay.common.settings import PositiveFloat, settings_class
from longplay.distributed.runtime.world import World
from longplay.distributed.table.host_memory import page_lock
from longplay.distributed.table.row_exchange import PendingRowExchange, RowExchange
from longplay.distributed.table.row_optimizers import RowOptimizerConfig, build_row_optimizer
from longplay.distributed.table.row_order import RowOrder
from longplay.distributed.zero.parameter import (
    forbid_gather,
    gradient_partition,
    optimizer_partition,
    partition_of,
    zero_parameter,
)

_INIT_BLOCK = 16384  # rows drawn from one generator; part of what a seed means


@settings_class
class ItemTableConfig:
    """Initialization, placement and update of the item table.

    Attributes:
        update: row_sparse = the owner of a touched row updates it with the row optimizer; zero_dense =
            DeepSpeed's Adam updates every row at each step.
        placement: Memory of rows and optimizer state. device = the encoder's device; host = page-locked host
            memory, for tables larger than the GPU. Both are the same on a CPU.
        lr_scale: Factor on `train.lr` for the item table.
        init_std: Standard deviation of the initial rows.
    """

    update: Literal["row_sparse", "zero_dense"] = "row_sparse"
    placement: Literal["device", "host"] = "device"
    optimizer: RowOptimizerConfig = field(default_factory=RowOptimizerConfig)
    lr_scale: PositiveFloat = 1.0
    init_std: PositiveFloat = 0.02

    def __post_init__(self) -> None:
        if self.update == "zero_dense" and self.optimizer.name != "adam":
            raise ValueError(
                f"optimizer.name={self.optimizer.name!r}: needs table.update row_sparse, because "
                "DeepSpeed's Adam updates the table with zero_dense"
            )
        if self.placement == "host" and self.update == "zero_dense":
            raise ValueError(
                "placement='host': needs table.update row_sparse, because zero_dense updates every row at "
                "each step"
            )


class _Holder(nn.Module):
    """Presents the parameter to DeepSpeed. It is never called, so that no gather hook ever fires on it."""

    def __init__(self, weight: nn.Parameter) -> None:
        super().__init__()
        self.weight = weight


class ItemTable:
    """Rows 1..num_items of width D over all ranks; this rank holds `rows_per_rank` consecutive row positions.

    Building it is collective: every rank must call.

    Args:
        num_items: items are 1..num_items; 0 is padding and has no row.
        width: D.
        seed: fixes the initial rows, whatever the number of ranks.
        initial_rows: draw them; False leaves zeros, for a table that a checkpoint fills.
        read_only: keep no optimizer state; for evaluation and recommendation.
    """

    def __init__(
        self,
        config: ItemTableConfig,
        *,
        num_items: int,
        width: int,
        world: World,
        seed: int = 0,
        initial_rows: bool = True,
        read_only: bool = False,
    ) -> None:
        self.config, self.world = config, world
        self.num_items, self.width = num_items, width
        self.order = RowOrder(num_items)
        self.rows_per_rank = math.ceil(num_items / world.world_size)
        self.first_row = min(world.rank * self.rows_per_rank, num_items)
        self.num_rows = min(self.first_row + self.rows_per_rank, num_items) - self.first_row
        on_host = config.placement == "host"
        where = torch.device("cpu") if on_host else world.device
        partition = torch.zeros(self.rows_per_rank, width, device=where)
        if initial_rows:
            fill_initial_rows(partition[: self.num_rows], self.first_row, std=config.init_std, seed=seed)
        self.zero_dense = config.update == "zero_dense" and not read_only
        weight = zero_parameter(partition, self.rows_per_rank * world.world_size, trainable=self.zero_dense)
        self.holder = _Holder(weight)
        # Reading `holder.weight` goes through DeepSpeed's parameter dictionary, which gathers; a list does
        # not.
        self._weight = [weight]
        self.row_optimizer = None
        if not (self.zero_dense or read_only):
            self.row_optimizer = build_row_optimizer(config.optimizer, self.shard)
        if on_host:
            kept = self.row_optimizer.state.values() if self.row_optimizer else ()
            for tensor in (partition, *kept):
                page_lock(tensor, self)
        self.step_count = 0
        self._pending: list[tuple[Tensor, Tensor]] = []
        self._dense: Tensor | None = None
        self._touched: Tensor | None = None
        self._summed: tuple[Tensor | None, Tensor] | None = None
        self.bytes_sent = 0
        if not self.zero_dense:  # else the engine forbids it, once it is built
            forbid_gather(weight)

    @property
    def shard(self) -> Tensor:
        """(num_rows, D) fp32: the rows this rank owns, as a view into ZeRO-3's partition.

        On the CPU where `placement` is host.
        """
        return self._rows(partition_of(self._weight[0]))

    def bytes_per_rank(self) -> dict[str, int]:
        """Bytes of weights and of optimizer state on this rank."""
        rows = self.rows_per_rank * self.width * 4
        if self.zero_dense:
            return {"weights": 2 * rows, "optimizer_state": 2 * rows, "gradient": rows}
        kept = self.row_optimizer.state.values() if self.row_optimizer else ()
        state = sum(value.numel() * value.element_size() for value in kept)
        return {"weights": rows, "optimizer_state": state, "gradient": 0}

    # ------------------------------------------------------------------ reading rows

    def begin_exchange(self, items: Tensor) -> tuple[PendingRowExchange, Tensor]:
        """Begin to plan one exchange for all `items` of a micro-batch. Every rank must call.

        Args:
            items: (n,) int64 item ids with repeats; 0 is padding.
        Returns:
            The plan in the making, and for each item its index into the rows that `lookup` returns (0 for
            padding).
        """
        positions = torch.where(items > 0, self.order.positions(items), -1)
        unique, index = torch.unique(positions, return_inverse=True)
        if unique.numel() and unique[0] == -1:
            return PendingRowExchange(unique[1:], self.rows_per_rank, self.world), index
        return PendingRowExchange(unique, self.rows_per_rank, self.world), index + 1

    def plan(self, items: Tensor) -> tuple[RowExchange, Tensor]:
        """`begin_exchange` and its end, in one."""
        planning, index = self.begin_exchange(items)
        return planning.finish(), index

    def lookup(self, plan: RowExchange) -> Tensor:
        """Fetch the planned rows as a leaf (U + 1, D) that collects gradients; row 0 is padding. Every rank
        must call.
        """
        return plan.rows_from_owners(self.shard).requires_grad_()

    # ------------------------------------------------------------------ gradients and update

    def add_row_gradients(self, plan: RowExchange, grads: Tensor) -> None:
        """Send the (U + 1, D) gradients of looked-up rows to their owners. Every rank must call."""
        self._pending.append(plan.sum_by_row(plan.gradients_to_owners(grads)))
        self.bytes_sent += plan.bytes_sent[0]

    def add_shard_gradient(self, grads: Tensor) -> None:
        """Add a gradient (num_rows, D) for every row this rank owns, as full cross-entropy gives."""
        self._dense = grads.clone() if self._dense is None else self._dense.add_(grads)

    def finish_gradients(self) -> Tensor:
        """Sum what the micro-batches left and return this rank's squared gradient norm (fp32 scalar).

        In `zero_dense` the sum goes into DeepSpeed's gradient partition, whose own norm covers it, and the
        scalar returned is 0.
        """
        self._summed = self._sum_pending()
        rows, grads = self._summed
        if self.world.world_size > 1:  # the engine's losses carry this factor, for DeepSpeed takes means
            grads.div_(self.world.world_size)
        if not self.zero_dense:
            return grads.square().sum()
        self._write_zero_gradient(rows, grads)
        return grads.new_zeros(())

    def step(self, *, lr: float, grad_scale: float) -> None:
        """Update the touched rows with learning rate `lr * lr_scale` and the summed gradient times
        `grad_scale`.

        In `zero_dense` DeepSpeed's engine has already updated the table; only the bookkeeping is left.
        """
        assert self._summed is not None, "finish_gradients comes before step"
        rows, grads = self._summed
        self._summed = None
        self.step_count += 1
        if self.row_optimizer is not None:
            grads = grads if grad_scale == 1.0 else grads * grad_scale
            scaled_lr = lr * self.config.lr_scale
            self.row_optimizer.step(self.shard, rows, grads, lr=scaled_lr, step=self.step_count)

    def take_bytes_sent(self) -> int:
        """Bytes this rank has sent to others for table rows since the last call."""
        sent, self.bytes_sent = self.bytes_sent, 0
        return sent

    def _sum_pending(self) -> tuple[Tensor | None, Tensor]:
        pending, self._pending = self._pending, []
        dense, self._dense = self._dense, None
        if dense is not None:
            for rows, grads in pending:
                dense.index_add_(0, rows, grads)
            return None, dense
        if len(pending) == 1:
            return pending[0]
        if not pending:
            nothing = torch.zeros(0, self.width, device=self.world.device)
            return torch.empty(0, dtype=torch.int64, device=nothing.device), nothing
        rows, where = torch.unique(torch.cat([rows for rows, _ in pending]), return_inverse=True)
        total = pending[0][1].new_zeros(rows.shape[0], self.width)
        for at, (_, grads) in zip(where.split([r.shape[0] for r, _ in pending]), pending, strict=True):
            total.index_add_(0, at, grads)
        return rows, total

    def _write_zero_gradient(self, rows: Tensor | None, grads: Tensor) -> None:
        partition = gradient_partition(self._weight[0]).view(self.rows_per_rank, self.width)
        if rows is None:
            partition[: self.num_rows].copy_(grads)
            self._touched = torch.arange(self.num_rows, device=grads.device)
            return
        if self._touched is None:
            partition.zero_()
        else:
            partition.index_fill_(0, self._touched, 0)
        partition.index_copy_(0, rows, grads)
        self._touched = rows

    # ------------------------------------------------------------------ state

    def state(self) -> dict[str, Tensor]:
        """This rank's rows and optimizer state by name: views, each (num_rows, ...), to read or to fill."""
        if self.world.device.type == "cuda" and self.config.placement == "host":
            torch.cuda.synchronize(self.world.device)  # kernels may still be writing what the CPU will read
        if not self.zero_dense:
            return {"weight": self.shard, **(self.row_optimizer.state if self.row_optimizer else {})}
        kinds = {"weight": None, "exp_avg": "exp_avg", "exp_avg_sq": "exp_avg_sq"}
        weight = self._weight[0]
        return {name: self._rows(optimizer_partition(weight, moment)) for name, moment in kinds.items()}

    def state_was_filled(self, step_count: int) -> None:
        """Call after filling the tensors of `state()`: `step_count` updates have been made to them."""
        self.step_count = step_count
        if self.zero_dense:
            self.shard.copy_(self.state()["weight"])

    def _rows(self, partition: Tensor) -> Tensor:
        """View a flat partition as this rank's rows (num_rows, D)."""
        return partition.view(self.rows_per_rank, self.width)[: self.num_rows]


def fill_initial_rows(rows: Tensor, first_row: int, *, std: float, seed: int) -> None:
    """Fill rows (n, D), which start at table row `first_row`, with normal values that depend on (seed, row)
    only.
    """
    done = 0
    while done < rows.shape[0]:
        block, offset = divmod(first_row + done, _INIT_BLOCK)
        take = min(_INIT_BLOCK - offset, rows.shape[0] - done)
        generator = torch.Generator().manual_seed((seed * 1_000_003 + block) & 0x7FFF_FFFF_FFFF_FFFF)
        drawn = torch.randn(_INIT_BLOCK, rows.shape[1], generator=generator)
        rows[done : done + take] = drawn[offset : offset + take] * std
        done += take
