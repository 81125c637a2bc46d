"""Full cross-entropy over a sharded table: each rank scores its own rows, one chunk of logits at a time."""

from typing import Any

import torch
from torch import Tensor

from longplay.distributed.runtime.collectives import all_gather_rows, all_reduce_max, all_reduce_sum
from longplay.distributed.runtime.world import World
from longplay.distributed.table.item_table import ItemTable

# Logits in memory at a time, per rank. On a CPU a chunk that fits in cache is nearly twice as fast. With
# several ranks each chunk costs two small all-reduces, so chunks are larger. A GPU needs large products.
_CHUNK_ELEMENTS_ALONE, _CHUNK_ELEMENTS_SHARED, _CHUNK_ELEMENTS_CUDA = 1 << 19, 1 << 21, 1 << 26


def full_softmax_loss(hidden: Tensor, targets: Tensor, table: ItemTable, anchor: Tensor) -> Tensor:
    """Sum -log softmax over all items at this rank's targets. Collective.

    Every row of the table has a gradient; the backward pass adds it by `table.add_shard_gradient`.

    Args:
        hidden: (V, D) the encoder's outputs at this rank's targets; V may be 0.
        targets: (V,) int64 items in 1..num_items.
        anchor: an fp32 scalar that requires grad, so that autograd runs the backward pass even if V is 0.
    Returns:
        fp32 scalar.
    """
    return _FullSoftmax.apply(hidden.float(), anchor, targets, table)


class _FullSoftmax(torch.autograd.Function):
    """Computes the gradients in the forward pass, while a chunk's logits exist: three products per chunk."""

    @staticmethod
    def forward(ctx: Any, hidden: Tensor, anchor: Tensor, targets: Tensor, table: ItemTable) -> Tensor:
        world, shard = table.world, table.shard
        every_hidden, counts = all_gather_rows(hidden.detach(), world)
        every_target, _ = all_gather_rows(targets, world)
        owned = table.order.positions(every_target) - table.first_row
        mine = (owned >= 0) & (owned < table.num_rows)
        owned = torch.where(mine, owned, 0)

        start = sum(counts[: world.rank])
        stop = start + counts[world.rank]
        hidden_grad = torch.zeros_like(every_hidden)
        shard_grad = torch.zeros_like(shard)
        losses = hidden.new_zeros(every_hidden.shape[0])
        rows = max(1, chunk_elements(world) // table.rows_per_rank)
        for at in range(0, every_hidden.shape[0], rows):
            chunk = slice(at, at + rows)
            losses[chunk] = _chunk_loss(
                every_hidden[chunk], owned[chunk], mine[chunk], table, hidden_grad[chunk], shard_grad
            )
        all_reduce_sum(hidden_grad, world)
        ctx.table, ctx.shard_grad = table, shard_grad
        ctx.save_for_backward(hidden_grad[start:stop])
        return losses[start:stop].sum()

    @staticmethod
    def backward(ctx: Any, *upstream: Tensor) -> tuple[Tensor, None, None, None]:
        (hidden_grad,) = ctx.saved_tensors
        # In place, because the shard may be large; a second backward fails.
        shard_grad, ctx.shard_grad = ctx.shard_grad, None
        ctx.table.add_shard_gradient(shard_grad.mul_(upstream[0]))
        return hidden_grad * upstream[0], None, None, None


def _chunk_loss(
    hidden: Tensor, owned: Tensor, mine: Tensor, table: ItemTable, hidden_grad: Tensor, shard_grad: Tensor
) -> Tensor:
    """Return the losses (n,) of one chunk of all ranks' queries. Collective.

    Args:
        hidden: (n, D), the same on every rank.
        owned: (n,) each target's row in this rank's shard, 0 where `mine` is False.
        mine: (n,) bool, whether this rank owns the target.
        table: provides `shard` (R, D), the rows of this rank.
        hidden_grad: (n, D), overwritten with this rank's part of the gradient.
        shard_grad: (R, D), accumulates the gradient of this rank's rows.
    """
    world, shard = table.world, table.shard
    logits = hidden @ shard.T
    # Targets of other ranks have a column too; to select this rank's, the host would wait for their number.
    column = owned.unsqueeze(1)
    if shard.shape[0]:
        target_logit, top = torch.where(mine, logits.gather(1, column).squeeze(1), 0), logits.amax(1)
    else:
        target_logit = logits.new_zeros(logits.shape[0])
        top = torch.full_like(target_logit, torch.finfo(logits.dtype).min)
    all_reduce_max(top, world)
    logits.sub_(top.unsqueeze(1)).exp_()
    sums = torch.stack([logits.sum(1), target_logit])
    all_reduce_sum(sums, world)
    # (exp - sum * one_hot) / sum is softmax - one_hot; dividing the (n, D) factors is cheaper.
    if shard.shape[0]:
        own_sum = torch.where(mine, sums[0], 0).unsqueeze(1)
        logits.scatter_(1, column, logits.gather(1, column) - own_sum)
    scale = sums[0].reciprocal().unsqueeze(1)
    torch.mm(logits, shard, out=hidden_grad)
    hidden_grad.mul_(scale)
    shard_grad.addmm_(logits.T, hidden * scale)
    return top + sums[0].log() - sums[1]


def chunk_elements(world: World) -> int:
    """Return the number of logits of one chunk on this rank."""
    if world.device.type == "cuda":
        return _CHUNK_ELEMENTS_CUDA
    return _CHUNK_ELEMENTS_ALONE if world.world_size == 1 else _CHUNK_ELEMENTS_SHARED
