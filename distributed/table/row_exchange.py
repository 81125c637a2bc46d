"""Which rows go where: unique ids -> owner ranks -> rows back, and row gradients the same way home."""

from dataclasses import dataclass, field

import torch
from torch import Tensor

from longplay.distributed.runtime.collectives import PendingCollective, all_to_all_rows, start_all_to_all_rows
from longplay.distributed.runtime.world import World
from longplay.distributed.table.host_memory import take_rows


@dataclass(frozen=True, kw_only=True)
class RowExchange:
    """One step's exchange, made once and used for the rows and for their gradients.

    Attributes:
        positions: (U,) the distinct row positions this rank asked for, ascending, so grouped by owner rank.
        send: rows asked of each rank; recv: rows each rank asks of us.
        local_rows: (sum(recv),) the rows asked of us, as row numbers in our partition, ordered by asking
            rank.
    """

    world: World
    positions: Tensor
    send: list[int]
    recv: list[int]
    local_rows: Tensor
    bytes_sent: list[int] = field(default_factory=lambda: [0])

    @property
    def num_unique(self) -> int:
        return self.positions.shape[0]

    def count_sent(self, num_rows: int, row_bytes: int) -> None:
        self.bytes_sent[0] += num_rows * row_bytes

    def rows_from_owners(self, shard: Tensor) -> Tensor:
        """Fetch the planned rows. Every rank must call.

        Args:
            shard: (R, D) this rank's partition of the table.
        Returns:
            (U + 1, D): row 0 is zero and stands for padding, row 1 + i belongs to `positions[i]`.
        """
        rows = take_rows(shard, self.local_rows)
        out = rows.new_empty(self.num_unique + 1, shard.shape[1])
        out[0] = 0
        all_to_all_rows(rows, self.recv, self.send, out[1:])
        sent = sum(self.recv) - self.recv[self.world.rank]
        self.count_sent(sent, shard.shape[1] * shard.element_size())
        return out

    def gradients_to_owners(self, grads: Tensor) -> Tensor:
        """Send each row's gradient to its owner. Every rank must call.

        Args:
            grads: (U + 1, D) as `rows_from_owners` returned rows; row 0 is ignored.
        Returns:
            (sum(recv), D) gradients of `local_rows`.
        """
        out = grads.new_empty(sum(self.recv), grads.shape[1])
        all_to_all_rows(grads[1:], self.send, self.recv, out)
        sent = sum(self.send) - self.send[self.world.rank]
        self.count_sent(sent, grads.shape[1] * grads.element_size())
        return out

    def sum_by_row(self, grads: Tensor) -> tuple[Tensor, Tensor]:
        """Add up what several ranks sent for the same row, in rank order, so that the sum is repeatable.

        Args:
            grads: (sum(recv), D) from `gradients_to_owners`.
        Returns:
            (T,) distinct local rows, ascending, and their (T, D) gradients.
        """
        if self.world.world_size == 1:
            return self.local_rows, grads
        rows, where = torch.unique(self.local_rows, return_inverse=True)
        total = grads.new_zeros(rows.shape[0], grads.shape[1])
        for at, part in zip(where.split(self.recv), grads.split(self.recv), strict=True):
            total.index_add_(0, at, part)  # no row occurs twice within one rank's part
        return rows, total


class PendingRowExchange:
    """The plan of an exchange in the making; what it takes from other ranks may travel beside other work.

    Making it sends how many rows are wanted of each rank, `send_positions` which ones, and `finish` waits for
    what the others want of us. Every rank must make it and call each, in the same order.

    Args:
        positions: (U,) distinct row positions, ascending.
    """

    def __init__(self, positions: Tensor, rows_per_rank: int, world: World) -> None:
        self._positions, self._rows_per_rank, self._world = positions, rows_per_rank, world
        self._send = self._recv = [positions.shape[0]]
        self._wanted = PendingCollective(positions)
        self._counts: tuple[Tensor, PendingCollective] | None = None
        if world.world_size > 1:
            edges = torch.arange(1, world.world_size, device=positions.device) * rows_per_rank
            cuts = torch.searchsorted(positions, edges)
            ends = torch.cat([cuts, cuts.new_tensor([positions.shape[0]])])
            asked = torch.diff(ends, prepend=ends.new_zeros(1))
            ones = [1] * world.world_size
            self._counts = asked, start_all_to_all_rows(asked, ones, ones, torch.empty_like(asked))

    def send_positions(self) -> None:
        """Wait for the numbers of rows and send the positions, once."""
        if self._counts is None:
            return
        asked, answered = self._counts
        self._counts = None
        self._send, self._recv = asked.tolist(), answered.wait().tolist()
        wanted = self._positions.new_empty(sum(self._recv))
        self._wanted = start_all_to_all_rows(self._positions, self._send, self._recv, wanted)

    def finish(self) -> RowExchange:
        """Wait for all and return the plan."""
        self.send_positions()
        rank = self._world.rank
        plan = RowExchange(
            world=self._world,
            positions=self._positions,
            send=self._send,
            recv=self._recv,
            local_rows=self._wanted.wait() - rank * self._rows_per_rank,
        )
        plan.count_sent(plan.num_unique - self._send[rank], self._positions.element_size())
        return plan
