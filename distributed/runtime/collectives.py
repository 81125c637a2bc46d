"""Collectives over deepspeed.comm; with one rank they return without communication.

Ranks that launch collectives in different orders wait for each other forever. The order is the same on all
ranks, on GPUs and for any stream, because:

* There is one process group, and so one NCCL communicator, which runs its collectives in the order in which
  the host launches them. DeepSpeed uses the same group (`use_default_group`).
* Only the main thread launches collectives, and autograd's threads while the main thread waits in `backward`.
  Threads that read data, write checkpoints or watch the ranks use files and the rendezvous store.
* The side stream does not change the order: the step that is planned on it is planned by the main thread, at
  fixed places of the current step.
* No branch around a collective depends on anything but the settings and on values that all ranks share. How
  often ranks agree that a save has ended depends on the disk, and is the same on all of them.

tests/distributed/test_collective_order.py records the order over training, validation, saving and resuming.
"""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from longplay.distributed.runtime.waiting import waiting
from longplay.distributed.runtime.world import World
from longplay.distributed.zero.deepspeed_env import comm


class PendingCollective:
    """A collective in flight.

    Args:
        result: the tensor that it fills; do not read or write it before `wait`.
        work: torch's handle; None if the collective is complete.
        sent: the tensor that it sends, kept alive until it is complete.
    """

    def __init__(self, result: Tensor, work: Any = None, sent: Tensor | None = None) -> None:
        self._result, self._work, self._sent = result, work, sent

    def wait(self) -> Tensor:
        """Wait until the collective is complete and return its result. On a GPU the current stream waits."""
        if self._work is not None:
            self._work.wait()
            self._work = self._sent = None
        return self._result


def all_reduce_sum(tensor: Tensor, world: World) -> Tensor:
    """Sum `tensor` over the ranks in place and return it. Collective."""
    if world.world_size > 1:
        comm.all_reduce(tensor)
    return tensor


def all_reduce_max(tensor: Tensor, world: World) -> Tensor:
    """Replace `tensor` by its elementwise maximum over the ranks and return it. Collective."""
    if world.world_size > 1:
        comm.all_reduce(tensor, op=comm.ReduceOp.MAX)
    return tensor


def broadcast_object(value: Any, world: World) -> Any:
    """Return rank 0's `value`, which pickle can copy, on every rank. Collective."""
    values = [value]
    if world.world_size > 1:
        with waiting("broadcast_object"):
            torch.distributed.broadcast_object_list(values, src=0)
    return values[0]


def all_gather_object(value: Any, world: World) -> list[Any]:
    """Return every rank's `value`, which pickle can copy, in rank order. Collective."""
    values = [value] * world.world_size
    if world.world_size > 1:
        with waiting("all_gather_object"):
            torch.distributed.all_gather_object(values, value)
    return values


def all_gather_rows(rows: Tensor, world: World) -> tuple[Tensor, list[int]]:
    """Concatenate every rank's `rows` in rank order. Collective.

    Args:
        rows: (n, ...); n may differ between ranks and may be 0, the trailing shape must be the same.
    Returns:
        The concatenation (sum of n, ...) and each rank's n.
    """
    if world.world_size == 1:
        return rows, [rows.shape[0]]
    mine = torch.tensor([rows.shape[0]], device=rows.device)
    counts = torch.empty(world.world_size, dtype=mine.dtype, device=rows.device)
    comm.all_gather_into_tensor(counts, mine)
    with waiting("the sizes of all ranks"):
        sizes = counts.tolist()
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
    """Send `send[r]` consecutive rows to each rank r and receive `recv[r]` rows from it. Collective.

    Args:
        rows: (sum(send), ...), ordered by destination.
        out: (sum(recv), ...), contiguous; filled in the order of the sources.
    Returns:
        `out`.
    """
    return start_all_to_all_rows(rows, send, recv, out).wait()


def start_all_to_all_rows(
    rows: Tensor, send: Sequence[int], recv: Sequence[int], out: Tensor
) -> PendingCollective:
    """Start `all_to_all_rows` and return without waiting for it. Collective."""
    if len(send) == 1:
        return PendingCollective(out.copy_(rows))
    rows = rows.contiguous()
    return PendingCollective(
        out, comm.all_to_all_single(out, rows, list(recv), list(send), async_op=True), rows
    )


def start_all_reduce_sum(tensor: Tensor, world: World) -> PendingCollective:
    """Start `all_reduce_sum` and return without waiting for it. Collective."""
    return PendingCollective(tensor, comm.all_reduce(tensor, async_op=True) if world.world_size > 1 else None)
