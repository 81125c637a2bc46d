"""The item table: one ZeRO-3 parameter, read and updated in its partitions; only touched rows are sent.

DeepSpeed owns the parameter and its partitioning in both update modes. They differ in the optimizer:

* `row_sparse`: DeepSpeed's optimizer excludes the table. The owner of a row updates it in place with a row
  optimizer; the work and the traffic of a step grow with the touched rows, not with the table.
* `zero_dense`: the summed row gradients are written to ZeRO-3's gradient partition, and DeepSpeed's Adam
  updates every row. This is exact dense Adam, for small tables and as a reference.
"""

import math

import torch
from torch import Tensor, nn

from longplay.distributed.runtime.waiting import waiting
from longplay.distributed.runtime.world import World
from longplay.distributed.table.config import ItemTableConfig
from longplay.distributed.table.host_memory import page_lock
from longplay.distributed.table.initial_rows import fill_initial_rows
from longplay.distributed.table.row_cache import RowCache, most_frequent_rows
from longplay.distributed.table.row_exchange import PendingRowExchange, RowExchange
from longplay.distributed.table.row_optimizers import build_row_optimizer
from longplay.distributed.table.row_order import RowOrder
from longplay.distributed.zero.parameter import (
    forbid_gather,
    gradient_partition,
    optimizer_partition,
    partition_of,
    zero_parameter,
)
from longplay.models.rows.gather import RowEntries, find_entries
from longplay.native.triton_runtime import can_run_triton


class _Holder(nn.Module):
    """Holds the parameter for DeepSpeed. It is never called, so DeepSpeed's gather hooks never run on it."""

    def __init__(self, weight: nn.Parameter) -> None:
        super().__init__()
        self.weight = weight


class ItemTable:
    """The rows of items 1..num_items over all ranks; each rank owns consecutive row positions. Collective.

    Args:
        num_items: items are 1..num_items; 0 is padding and has no row.
        width: D.
        seed: determines the initial rows, for any number of ranks.
        initial_rows: draw the initial rows; False leaves zeros, for a table that is loaded from a checkpoint.
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
        # `holder.weight` would go through DeepSpeed's parameter dictionary, which gathers.
        self._weight = [weight]
        self.row_optimizer = None
        self._cache: RowCache | None = None
        if not (self.zero_dense or read_only):
            self.row_optimizer = build_row_optimizer(config.optimizer, self.shard)
        if on_host:
            kept = self.row_optimizer.state.values() if self.row_optimizer else ()
            for tensor in (partition, *kept):
                page_lock(tensor, self, world.device)
        if config.cached_rows and self.row_optimizer:
            rows = most_frequent_rows(self.order, self.first_row, self.num_rows, config.cached_rows)
            self._cache = RowCache(
                config.optimizer, self._local_shard, self.row_optimizer, rows, world.device
            )
        self.step_count = 0
        self._pending: list[tuple[Tensor, Tensor]] = []
        self._dense: Tensor | None = None
        self._touched: Tensor | None = None
        self._summed: tuple[Tensor | None, Tensor] | None = None
        self.bytes_sent = 0
        if not self.zero_dense:  # with zero_dense the engine forbids it after its construction
            forbid_gather(weight)

    @property
    def shard(self) -> Tensor:
        """(num_rows, D) fp32: the rows that this rank owns, a view of ZeRO-3's partition.

        On the CPU if `placement` is host. Cached rows are written back first.
        """
        if self._cache is not None:
            self._cache.write_back()
        return self._local_shard

    @property
    def _local_shard(self) -> Tensor:
        """(num_rows, D) fp32: `shard`, in which cached rows may be out of date."""
        return self._rows(partition_of(self._weight[0]))

    def bytes_per_rank(self) -> dict[str, int]:
        """Return the bytes of weights, optimizer state, gradient and cached rows on this rank."""
        rows = self.rows_per_rank * self.width * 4
        if self.zero_dense:
            return {"weights": 2 * rows, "optimizer_state": 2 * rows, "gradient": rows}
        kept = self.row_optimizer.state.values() if self.row_optimizer else ()
        state = sum(value.numel() * value.element_size() for value in kept)
        cached = self._cache.num_bytes if self._cache else 0
        return {"weights": rows, "optimizer_state": state, "gradient": 0, "cached_rows": cached}

    # ------------------------------------------------------------------ reading rows

    def start_exchange(self, items: Tensor) -> tuple[PendingRowExchange, Tensor, RowEntries | None]:
        """Start the exchange of the rows of all `items` of a micro-batch. Collective.

        Args:
            items: (n,) int64 item ids; repeats are requested once, 0 is padding.
        Returns:
            The exchange, its metadata in flight; (n,) int64, each item's index into the rows that `lookup`
            returns, 0 for padding; and the entries of each row where kernels use them, else None.
        """
        positions = torch.where(items > 0, self.order.positions(items), -1)
        entries = None
        if can_run_triton(items.device.type):
            unique, index, entries = find_entries(positions)
        else:
            with waiting("the distinct rows"):
                unique, index = torch.unique(positions, return_inverse=True)
                has_padding = bool(unique.numel() and unique[0] == -1)
            if has_padding:
                unique = unique[1:]
            else:
                index = index + 1
        return PendingRowExchange(unique, self.rows_per_rank, self.world), index, entries

    def make_exchange(self, items: Tensor) -> tuple[RowExchange, Tensor]:
        """Start an exchange and wait for its metadata; arguments as in `start_exchange`. Collective."""
        pending, index, _ = self.start_exchange(items)
        return pending.wait(), index

    def lookup(self, exchange: RowExchange) -> Tensor:
        """Fetch the rows as a leaf (U + 1, D) that collects gradients; row 0 is padding. Collective."""
        take = self._cache.take_rows if self._cache else None
        return exchange.fetch_rows(self._local_shard, take).requires_grad_()

    # ------------------------------------------------------------------ gradients and update

    def add_row_gradients(self, exchange: RowExchange, grads: Tensor) -> None:
        """Send the gradients (U + 1, D) of the rows from `lookup` to the owners of the rows. Collective."""
        self._pending.append(exchange.sum_by_row(exchange.send_gradients(grads)))
        self.bytes_sent += exchange.bytes_sent(self.width * self._local_shard.element_size())

    def add_shard_gradient(self, grads: Tensor) -> None:
        """Add a gradient (num_rows, D) of every row of this rank, which the table may overwrite."""
        self._dense = grads if self._dense is None else self._dense.add_(grads)

    def finish_gradients(self) -> Tensor:
        """Sum the micro-batches' gradients; return this rank's squared gradient norm, an fp32 scalar.

        With `zero_dense` the sum goes to DeepSpeed's gradient partition, whose norm includes it, and the
        scalar is 0.
        """
        self._summed = self._sum_pending()
        rows, grads = self._summed
        if self.world.world_size > 1:  # the engine multiplies losses by it, because DeepSpeed averages
            grads.div_(self.world.world_size)
        if not self.zero_dense:
            return grads.square().sum()
        self._write_zero_gradient(rows, grads)
        return grads.new_zeros(())

    def step(self, *, lr: float, grad_scale: float) -> None:
        """Update the touched rows with the gradients of `finish_gradients`.

        With `zero_dense` DeepSpeed has updated the table already, and this only counts the step.

        Args:
            lr: learning rate of the encoder; `lr_scale` multiplies it.
            grad_scale: factor on the gradients, from clipping.
        """
        assert self._summed is not None, "call finish_gradients before step"
        rows, grads = self._summed
        self._summed = None
        self.step_count += 1
        if self.row_optimizer is not None:
            grads = grads if grad_scale == 1.0 else grads * grad_scale
            scaled_lr = lr * self.config.lr_scale
            if self._cache is not None:
                assert rows is not None, "no gradient of every row with placement host"
                self._cache.update(rows, grads, lr=scaled_lr, step=self.step_count)
            else:
                self.row_optimizer.step(self._local_shard, rows, grads, lr=scaled_lr, step=self.step_count)

    def take_bytes_sent(self) -> int:
        """Return the bytes that this rank sent to others for table rows since the last call."""
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
        with waiting("the distinct rows"):
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
        """Return this rank's rows and optimizer state by name: views (num_rows, ...), to read or to fill."""
        if self.world.device.type == "cuda" and self.config.placement == "host":
            with waiting("the device"):  # kernels may still write the rows that the CPU reads
                torch.cuda.synchronize(self.world.device)
        if not self.zero_dense:  # `shard` writes cached rows and their state back
            return {"weight": self.shard, **(self.row_optimizer.state if self.row_optimizer else {})}
        kinds = {"weight": None, "exp_avg": "exp_avg", "exp_avg_sq": "exp_avg_sq"}
        weight = self._weight[0]
        return {name: self._rows(optimizer_partition(weight, moment)) for name, moment in kinds.items()}

    def finish_loading(self, step_count: int) -> None:
        """Adopt a loaded state: the caller has filled the tensors of `state()` with it.

        Args:
            step_count: table updates that the state contains.
        """
        self.step_count = step_count
        if self._cache is not None:
            self._cache.load()
        if self.zero_dense:
            self.shard.copy_(self.state()["weight"])

    def _rows(self, partition: Tensor) -> Tensor:
        """View a flat partition as this rank's rows (num_rows, D)."""
        return partition.view(self.rows_per_rank, self.width)[: self.num_rows]
