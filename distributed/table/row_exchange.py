"""Exchange of table rows: requests go to the owners, rows come back, row gradients return to the owners."""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from longplay.distributed.runtime.collectives import PendingCollective, all_to_all_rows, start_all_to_all_rows
from longplay.distributed.runtime.waiting import waiting
from longplay.distributed.runtime.world import World
from longplay.distributed.table.host_memory import take_rows


@dataclass(frozen=True, kw_only=True)
class RowExchange:
    """The metadata of one exchange, used for the rows and for their gradients.

    Attributes:
        positions: (U,) int64, the distinct row positions that this rank requests, ascending and therefore
            grouped by owner.
        send: number of rows that this rank requests from each rank.
        recv: number of rows that each rank requests from this rank.
        local_rows: (sum(recv),) int64, the requested rows of this rank's shard, ordered by requesting rank.
    """

    world: World
    positions: Tensor
    send: list[int]
    recv: list[int]
    local_rows: Tensor

    @property
    def num_unique(self) -> int:
        """U, the number of distinct rows."""
        return self.positions.shape[0]

    def bytes_sent(self, row_bytes: int) -> int:
        """Return the bytes that a complete exchange sends to other ranks: positions, rows and gradients."""
        rank = self.world.rank
        requested, served = self.num_unique - self.send[rank], sum(self.recv) - self.recv[rank]
        return requested * (self.positions.element_size() + row_bytes) + served * row_bytes

    def fetch_rows(self, shard: Tensor, take: Callable[[Tensor], Tensor] | None = None) -> Tensor:
        """Fetch the requested rows from their owners. Collective.

        Args:
            shard: (R, D) this rank's shard of the table.
            take: returns rows of the shard by their numbers (n,); None reads them from `shard`.
        Returns:
            (U + 1, D): row 0 is zero, for padding; row 1 + i is the row at `positions[i]`.
        """
        device = self.local_rows.device
        out = torch.empty(self.num_unique + 1, shard.shape[1], dtype=shard.dtype, device=device)
        out[0] = 0
        if take is None and self.world.world_size == 1 and shard.device == device:
            torch.index_select(shard, 0, self.local_rows, out=out[1:])
        else:
            rows = take(self.local_rows) if take else take_rows(shard, self.local_rows)
            all_to_all_rows(rows, self.recv, self.send, out[1:])
        return out

    def send_gradients(self, grads: Tensor) -> Tensor:
        """Send each row's gradient to its owner. Collective.

        Args:
            grads: (U + 1, D), in the order of `fetch_rows`; row 0 is ignored.
        Returns:
            (sum(recv), D), the gradients of `local_rows`.
        """
        if self.world.world_size == 1:
            return grads[1:]
        out = grads.new_empty(sum(self.recv), grads.shape[1])
        all_to_all_rows(grads[1:], self.send, self.recv, out)
        return out

    def sum_by_row(self, grads: Tensor) -> tuple[Tensor, Tensor]:
        """Sum the gradients of each row over the ranks that sent one, in rank order to be deterministic.

        Args:
            grads: (sum(recv), D) from `send_gradients`.
        Returns:
            (T,) distinct rows of this shard, ascending, and their (T, D) gradients.
        """
        if self.world.world_size == 1:
            return self.local_rows, grads
        with waiting("the distinct rows"):
            rows, where = torch.unique(self.local_rows, return_inverse=True)
        total = grads.new_zeros(rows.shape[0], grads.shape[1])
        for at, part in zip(where.split(self.recv), grads.split(self.recv), strict=True):
            total.index_add_(0, at, part)  # no row occurs twice within one rank's part
        return rows, total


class PendingRowExchange:
    """An exchange whose metadata all-to-alls are in flight, in parallel with other work. Collective.

    Construction starts the all-to-all of the request counts, `send_positions` starts that of the requested
    positions, and `wait` returns the exchange. Every rank makes these three calls in the same order.

    Args:
        positions: (U,) int64 distinct row positions, ascending.
        rows_per_rank: rows that each rank owns.
    """

    def __init__(self, positions: Tensor, rows_per_rank: int, world: World) -> None:
        self._positions, self._rows_per_rank, self._world = positions, rows_per_rank, world
        self._send = self._recv = [positions.shape[0]]
        self._requested = PendingCollective(positions)
        self._counts: tuple[Tensor, PendingCollective] | None = None
        if world.world_size > 1:
            edges = torch.arange(1, world.world_size, device=positions.device) * rows_per_rank
            cuts = torch.searchsorted(positions, edges)
            ends = torch.cat([cuts, cuts.new_tensor([positions.shape[0]])])
            send = torch.diff(ends, prepend=ends.new_zeros(1))
            ones = [1] * world.world_size
            self._counts = send, start_all_to_all_rows(send, ones, ones, torch.empty_like(send))

    def send_positions(self) -> None:
        """Wait for the request counts and start the all-to-all of the positions. Collective.

        A second call does nothing.
        """
        if self._counts is None:
            return
        send, recv = self._counts
        self._counts = None
        with waiting("the numbers of rows"):
            self._send, self._recv = send.tolist(), recv.wait().tolist()
        requested = self._positions.new_empty(sum(self._recv))
        self._requested = start_all_to_all_rows(self._positions, self._send, self._recv, requested)

    def wait(self) -> RowExchange:
        """Wait for the metadata and return the exchange. Collective."""
        self.send_positions()
        return RowExchange(
            world=self._world,
            positions=self._positions,
            send=self._send,
            recv=self._recv,
            local_rows=self._requested.wait() - self._world.rank * self._rows_per_rank,
        )
