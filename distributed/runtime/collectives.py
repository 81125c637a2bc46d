"""The few collectives we use, over deepspeed.comm; one rank alone never touches the network."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from longplay.distributed.runtime.world import World
from longplay.distributed.zero.deepspeed_env import comm


class PendingCollective:
    """A collective that has begun.

    Args:
        result: what it fills; nobody may touch it before `wait`.
        work: what torch calls a collective that has not ended; None: it has.
        sent: kept until it has ended.
    """

    def __init__(self, result: Tensor, work: Any = None, sent: Tensor | None = None) -> None:
        self._result, self._work, self._sent = result, work, sent

    def wait(self) -> Tensor:
        """Wait for it (on a GPU the current stream does) and return its result."""
        if self._work is not None:
            self._work.wait()
            self._work = self._sent = None
        return self._result


def all_reduce_sum(tensor: Tensor, world: World) -> Tensor:
    """Sum `tensor` over the ranks in place and return it. Every rank must call."""
    if world.world_size > 1:
        comm.all_reduce(tensor)
    return tensor


def all_reduce_max(tensor: Tensor, world: World) -> Tensor:
    """Elementwise maximum of `tensor` over the ranks, in place. Every rank must call."""
    if world.world_size > 1:
        comm.all_reduce(tensor, op=comm.ReduceOp.MAX)
    return tensor


def all_gather_rows(rows: Tensor, world: World) -> tuple[Tensor, list[int]]:
    """Concatenate every rank's `rows` in rank order. Every rank must call.

    Args:
        rows: (n, ...), where n may differ between ranks and may be 0; the trailing shape may not differ.
    Returns:
        The (sum of n, ...) concatenation and each rank's n.
    """
    if world.world_size == 1:
        return rows, [rows.shape[0]]
    mine = torch.tensor([rows.shape[0]], device=rows.device)
    counts = torch.empty(world.world_size, dtype=mine.dtype, device=rows.device)
    comm.all_gather_into_tensor(counts, mine)
    sizes = [int(n) for n in counts.tolist()]
    longest = max(sizes)
    if longest == 0:
        return rows, sizes
    padded = rows.new_zeros(longest, *rows.shape[1:])
    padded[: rows.shape[0]] = rows
    gathered = rows.new_empty(world.world_size * longest, *rows.shape[1:])
    comm.all_gather_into_tensor(gathered, padded)
    parts = [gathered[r * longest : r * longest + n] for r, n in enumerate(sizes)]
    return torch.cat(parts), sizes


def all_to_all_rows(rows: Tensor, send: Sequence[int], recv: Sequence[int], out: Tensor) -> Tensor:
    """Send `send[r]` consecutive rows to each rank r, receive `recv[r]` from it into `out`. Every rank must
    call.

    Args:
        rows: (sum(send), ...), ordered by destination.
        out: (sum(recv), ...), filled ordered by source; must be contiguous.
    """
    return start_all_to_all_rows(rows, send, recv, out).wait()


def start_all_to_all_rows(
    rows: Tensor, send: Sequence[int], recv: Sequence[int], out: Tensor
) -> PendingCollective:
    """`all_to_all_rows` that returns at once; `wait` gives `out`, filled. Every rank must call."""
    if len(send) == 1:
        return PendingCollective(out.copy_(rows))
    rows = rows.contiguous()
    return PendingCollective(
        out, comm.all_to_all_single(out, rows, list(recv), list(send), async_op=True), rows
    )


def start_all_reduce_sum(tensor: Tensor, world: World) -> PendingCollective:
    """`all_reduce_sum` that returns at once; `wait` gives `tensor`, summed. Every rank must call."""
    return PendingCollective(tensor, comm.all_reduce(tensor, async_op=True) if world.world_size > 1 else None)
