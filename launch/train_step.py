"""One optimizer step, from packed rows to updated weights."""

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

from longplay.data_shards.train_stream import Batch
from longplay.distributed.collectives import all_gather_rows, all_reduce_sum
from longplay.distributed.full_softmax import full_softmax_loss
from longplay.distributed.phases import phase
from longplay.distributed.row_exchange import RowPlan
from longplay.launch.model import Model
from longplay.models.keyed_random import keyed_integers, row_keys
from longplay.models.losses import bce_loss, bpr_loss, gbce_loss, sampled_softmax_loss
from longplay.models.negatives import target_keys, uniform_negatives


@dataclass(frozen=True, kw_only=True)
class StepResult:
    """What a step did, the same on every rank except `table_bytes`, this rank's bytes sent for table rows."""

    loss: float
    grad_norm: float
    num_targets: int
    stop_requested: bool
    table_bytes: int


def train_step(
    model: Model, batch: Batch, *, step: int, lr: float, stop_requested: bool = False
) -> StepResult:
    """Run step number `step` (from 1) on this rank's rows. Every rank must call.

    The loss is the sum over all valid targets of the global batch divided by their number, so that it depends
    neither on how rows are packed nor on how many ranks or micro-batches share them.

    Args:
        stop_requested: whether this rank was told to stop; the result says whether any rank was.
    Raises:
        NonFiniteError: the loss or a gradient is not finite; no weight has changed.
    """
    device = model.world.device
    counts = torch.tensor([int((batch.targets > 0).sum()), int(stop_requested)], device=device)
    num_targets, stops = all_reduce_sum(counts, model.world).tolist()
    divisor = max(1, num_targets)  # all rows of a step may be of skipped shards
    with phase("negatives"):
        shared = draw_shared(model, batch, step)

    model.engine.train()
    loss_sum = torch.zeros((), dtype=torch.float64, device=device)
    micro_batches = list(split_rows(batch, model.config.engine.accumulation))
    for number, rows in enumerate(micro_batches):
        loss, looked_up, plan = micro_batch_loss(model, rows, shared, step)
        with phase("backward"):
            model.engine.backward(loss / divisor, last=number + 1 == len(micro_batches))
        assert looked_up.grad is not None
        with phase("exchange"):
            model.table.add_row_gradients(plan, looked_up.grad)
        loss_sum += loss.detach()

    mean_loss = float(all_reduce_sum(loss_sum, model.world)) / divisor
    at = f"at step {step} (epoch {batch.epoch}, step {batch.step} of it, rows of lanes {lanes_of(batch)})"
    grad_norm = model.engine.step(lr=lr, loss=mean_loss, at=at)
    return StepResult(
        loss=mean_loss,
        grad_norm=grad_norm,
        num_targets=num_targets,
        stop_requested=stops > 0,
        table_bytes=model.table.take_bytes_sent(),
    )


def micro_batch_loss(
    model: Model, batch: Batch, shared: Tensor | None, step: int
) -> tuple[Tensor, Tensor, RowPlan]:
    """Summed loss of one micro-batch, the table rows it looked up, and their exchange plan. Every rank must
    call.

    Inputs, targets and negatives travel in one exchange.
    """
    loss, table, device = model.config.loss, model.table, model.world.device
    item_ids = batch.item_ids.to(device, non_blocking=True)
    seq_idx = batch.seq_idx.to(device, non_blocking=True)
    targets = batch.targets.to(device, non_blocking=True)
    keys = rows_keys(model, batch, step)
    valid = targets > 0
    positives = targets[valid]
    with phase("negatives"):
        if loss.name == "full_softmax":
            wanted = [item_ids.flatten()]
        elif shared is not None:
            wanted = [item_ids.flatten(), positives, shared]
        else:
            row, slot = valid.nonzero(as_tuple=True)
            target_key = target_keys(keys[row], slot)
            drawn = uniform_negatives(target_key, positives, loss.num_negatives, table.num_items)
            wanted = [item_ids.flatten(), positives, drawn.flatten()]
    with phase("exchange"):
        plan, index = table.plan(torch.cat(wanted))
        rows = table.lookup(plan)
    inputs, *candidates = index.split([ids.numel() for ids in wanted])

    with phase("encoder"):
        embedded = F.embedding(inputs.view(item_ids.shape), rows)
        hidden = model.engine(embedded, seq_idx, keys)[valid].float()
    with phase("loss"):
        value = summed_loss(model, hidden, positives, rows, candidates, shared)
    return value, rows, plan


def summed_loss(
    model: Model,
    hidden: Tensor,
    positives: Tensor,
    rows: Tensor,
    candidates: list[Tensor],
    shared: Tensor | None,
) -> Tensor:
    """The loss that the configuration names, summed over targets. Every rank must call.

    Args:
        hidden: (V, D) fp32, the encoder's output at each target.
        positives: (V,) the targets' items.
        rows: (U + 1, D) fp32, the rows looked up.
        candidates: where in `rows` the targets stand, (V,), and their negatives, (V * K,) or (M,); empty for
            a full softmax.
        shared: (M,) the items of shared negatives.
    """
    loss, table = model.config.loss, model.table
    match loss.name:
        case "full_softmax":
            return full_softmax_loss(hidden, positives, table, anchor=rows[0, 0])
        case "sampled_softmax":
            assert shared is not None
            assert model.negatives is not None
            log_q, own_log_q = model.negatives.log_q(shared), model.negatives.log_q(positives)
            return sampled_softmax_loss(hidden, rows, candidates[0], candidates[1], log_q, own_log_q)
    positive, negative = candidates[0], candidates[1].view(-1, loss.num_negatives)
    match loss.name:
        case "bce":
            return bce_loss(hidden, rows, positive, negative)
        case "gbce":
            return gbce_loss(hidden, rows, positive, negative, num_items=table.num_items, t=loss.gbce_t)
        case "bpr":
            return bpr_loss(hidden, rows, positive, negative)


def draw_shared(model: Model, batch: Batch, step: int) -> Tensor | None:
    """Negatives (M,) that all targets of the global batch share, the same on every rank. Every rank must
    call.
    """
    loss, device = model.config.loss, model.world.device
    if model.negatives is None:
        return None
    zero = torch.zeros(1, dtype=torch.int64, device=device)
    key = row_keys(model.config.seed, step, zero - 1, zero)  # no row is of lane -1
    if loss.negatives != "in_batch":
        return model.negatives.draw(key, loss.num_negatives)
    everyone, _ = all_gather_rows(batch.targets[batch.targets > 0].to(device), model.world)
    if not everyone.shape[0]:
        return torch.ones(
            loss.num_negatives, dtype=torch.int64, device=device
        )  # no target is compared to them
    return everyone[keyed_integers(key, 0, loss.num_negatives, everyone.shape[0])[0]]


def rows_keys(model: Model, batch: Batch, step: int) -> Tensor:
    """(B,) key of each row's random numbers: its place in the data, whatever the rank and micro-batch."""
    device = model.world.device
    lanes = batch.row_lanes.to(device, non_blocking=True)
    return row_keys(model.config.seed, step, lanes, batch.row_numbers.to(device, non_blocking=True))


def split_rows(batch: Batch, parts: int) -> Iterator[Batch]:
    """Cut a rank's rows into `parts` micro-batches; one that would be empty becomes a row of padding."""
    split = {
        name: tensor.tensor_split(parts) for name, tensor in batch.tensors().items()
    }  # views stay pinned
    for number in range(parts):
        fields = {name: pieces[number] for name, pieces in split.items()}
        if fields["item_ids"].shape[0] == 0:
            fields = {name: value.new_zeros(1, *value.shape[1:]) for name, value in fields.items()}
        yield Batch(batch.epoch, batch.step, **fields)


def lanes_of(batch: Batch) -> str:
    """This rank's lanes in a batch, for a message."""
    lanes = sorted(set(batch.row_lanes.tolist()))
    return f"{lanes[0]} to {lanes[-1]}" if lanes else "none"
