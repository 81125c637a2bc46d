"""Which rows go where: unique ids -> owner ranks -> rows back, and row gradients the same way home."""

from dataclasses import dataclass, field

import torch
from torch import Tensor

from longplay.distributed.collectives import all_to_all_rows
from longplay.distributed.deepspeed_env import comm
from longplay.distributed.world import World


@dataclass(frozen=True, kw_only=True)
class RowPlan:
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
        out = shard.new_empty(self.num_unique + 1, shard.shape[1])
        out[0] = 0
        rows = shard.index_select(0, self.local_rows)
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


def make_row_plan(positions: Tensor, rows_per_rank: int, world: World) -> RowPlan:
    """Plan the exchange of distinct row `positions` (U,), ascending. Every rank must call."""
    if world.world_size == 1:
        count = [positions.shape[0]]
        return RowPlan(world=world, positions=positions, send=count, recv=count, local_rows=positions)
    edges = torch.arange(1, world.world_size, device=positions.device) * rows_per_rank
    cuts = torch.searchsorted(positions, edges)
    ends = torch.cat([cuts, cuts.new_tensor([positions.shape[0]])])
    asked = torch.diff(ends, prepend=ends.new_zeros(1))
    answered = torch.empty_like(asked)
    comm.all_to_all_single(answered, asked)
    send, recv = asked.tolist(), answered.tolist()
    wanted = positions.new_empty(sum(recv))
    all_to_all_rows(positions, send, recv, wanted)
    plan = RowPlan(
        world=world,
        positions=positions,
        send=send,
        recv=recv,
        local_rows=wanted - world.rank * rows_per_rank,
    )
    plan.count_sent(positions.shape[0] - send[world.rank], positions.element_size())
    return plan
