"""One optimizer step, from packed rows to updated weights."""

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

from longplay.data_shards.stream.train_stream import Batch
from longplay.distributed.runtime.phases import phase
from longplay.distributed.table.full_softmax import full_softmax_loss
from longplay.distributed.table.row_exchange import RowExchange
from longplay.launch.training.model import Model
from longplay.launch.training.step_pipeline import PlannedRows, PlannedStep, StepPipeline, plan_step
from longplay.models.losses.losses import bce_loss, bpr_loss, gbce_loss, sampled_softmax_loss


@dataclass(frozen=True, kw_only=True)
class StepResult:
    """What a step did, the same on every rank except `table_bytes`, this rank's bytes sent for table rows."""

    loss: float
    grad_norm: float
    num_targets: int
    stop_requested: bool
    table_bytes: int


def train_step(model: Model, batch: Batch, *, step: int, lr: float) -> StepResult:
    """Plan step number `step` (from 1) of this rank's rows and run it. Every rank must call."""
    model.side.mark()
    return run_step(model, plan_step(model, batch, step), lr=lr)


def run_step(
    model: Model,
    planned: PlannedStep,
    *,
    lr: float,
    stop_requested: bool = False,
    ahead: StepPipeline | None = None,
) -> StepResult:
    """Run a planned step. Every rank must call.

    The loss is the sum over all valid targets of the global batch divided by their number, so that it depends
    neither on how rows are packed nor on how many ranks or micro-batches share them.

    Args:
        stop_requested: whether this rank was told to stop; the result says whether any rank was.
        ahead: plans the next step beside this one.
    Raises:
        NonFiniteError: the loss or a gradient is not finite; no weight has changed.
    """
    model.side.mark()
    with model.side.beside(), phase("exchange"):
        num_targets = int(planned.num_targets.wait())
        plans = [rows.planning.finish() for rows in planned.micro_batches]
    model.side.join()
    divisor = max(1, num_targets)  # all rows of a step may be of skipped shards

    model.engine.train()
    loss_sum = torch.zeros((), dtype=torch.float64, device=model.world.device)
    for rows, plan in zip(planned.micro_batches, plans, strict=True):
        last = rows is planned.micro_batches[-1]
        loss, looked_up = micro_batch_loss(model, rows, plan, planned.shared)
        if last and ahead is not None:
            ahead.plan_next()
        with phase("backward"):
            model.engine.backward(loss / divisor, last=last)
        assert looked_up.grad is not None
        with phase("exchange"):
            model.table.add_row_gradients(plan, looked_up.grad)
        loss_sum += loss.detach()
    if ahead is not None:
        ahead.send_positions()

    batch = planned.batch
    where = f"epoch {batch.epoch}, step {batch.step} of it, rows of lanes {lanes_of(batch)}"
    at = f"at step {planned.step} ({where})"
    outcome = model.engine.step(lr=lr, loss=loss_sum / divisor, at=at, flag=stop_requested)
    return StepResult(
        loss=outcome.loss,
        grad_norm=outcome.grad_norm,
        num_targets=num_targets,
        stop_requested=outcome.flag,
        table_bytes=model.table.take_bytes_sent(),
    )


def micro_batch_loss(
    model: Model, micro_batch: PlannedRows, plan: RowExchange, shared: Tensor | None
) -> tuple[Tensor, Tensor]:
    """Summed loss of one micro-batch, and the table rows it looked up by `plan`. Every rank must call."""
    with phase("exchange"):
        rows = model.table.lookup(plan)
    with phase("encoder"):
        embedded = F.embedding(micro_batch.inputs, rows)
        hidden = model.engine(embedded, micro_batch.seq_idx, micro_batch.keys)
        hidden = hidden.flatten(0, 1).index_select(0, micro_batch.slots).float()
    with phase("loss"):
        value = summed_loss(model, hidden, micro_batch.positives, rows, micro_batch.candidates, shared)
    return value, rows


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
            log_q, positive_log_q = model.negatives.log_q(shared), model.negatives.log_q(positives)
            return sampled_softmax_loss(hidden, rows, candidates[0], candidates[1], log_q, positive_log_q)
    positive, negative = candidates[0], candidates[1].view(-1, loss.num_negatives)
    match loss.name:
        case "bce":
            return bce_loss(hidden, rows, positive, negative)
        case "gbce":
            return gbce_loss(hidden, rows, positive, negative, num_items=table.num_items, t=loss.gbce_t)
        case "bpr":
            return bpr_loss(hidden, rows, positive, negative)


def lanes_of(batch: Batch) -> str:
    """This rank's lanes in a batch, for a message."""
    lanes = sorted(set(batch.row_lanes.tolist()))
    return f"{lanes[0]} to {lanes[-1]}" if lanes else "none"
