"""One optimizer step, from packed rows to updated weights."""

from dataclasses import dataclass

import torch
from torch import Tensor

from longplay.data_shards.stream.train_stream import Batch
from longplay.distributed.runtime.phases import phase
from longplay.distributed.runtime.waiting import waiting
from longplay.distributed.table.full_softmax import full_softmax_loss
from longplay.distributed.table.row_exchange import RowExchange
from longplay.launch.console.stop_request import StopRequested
from longplay.launch.training.model import Model
from longplay.launch.training.step_pipeline import VOID, PlannedMicroBatch, PlannedStep, StepPipeline
from longplay.models.losses.base import LossInputs
from longplay.models.rows.gather import gather_rows


@dataclass(frozen=True, kw_only=True)
class StepResult:
    """The outcome of a step, the same on every rank except `table_bytes`.

    Attributes:
        stop_requested: whether any rank received a stop request.
        table_bytes: bytes that this rank sent for table rows and their gradients.
    """

    loss: float
    grad_norm: float
    num_targets: int
    stop_requested: bool
    table_bytes: int


def train_step(
    model: Model,
    planned: PlannedStep,
    *,
    lr: float,
    stop_requested: bool = False,
    pipeline: StepPipeline | None = None,
) -> StepResult:
    """Run a planned step and update encoder and table. Collective.

    The loss is the sum over all targets of the global batch divided by their number, so that it does not
    depend on how rows are packed or how many ranks and micro-batches share them.

    Args:
        stop_requested: whether this rank received a stop request.
        pipeline: plans the next step while this one runs; None plans nothing.

    Raises:
        NonFiniteError: the loss or a gradient is not finite; no weight has changed.
        StopRequested: the step is void, since some rank is to stop; no weight has changed. Raised on every
            rank.
    """
    model.side.mark()
    with model.side.stream(), phase("exchange"):
        with waiting("the number of targets"):
            num_targets = int(planned.num_targets.wait())
        exchanges = [micro_batch.exchange.wait() for micro_batch in planned.micro_batches]
    model.side.join()
    if num_targets >= VOID:
        raise StopRequested
    divisor = max(1, num_targets)  # 0 if all rows of the step lie in skipped shards

    model.engine.train()
    loss_sum = torch.zeros((), dtype=torch.float64, device=model.world.device)
    for micro_batch, exchange in zip(planned.micro_batches, exchanges, strict=True):
        last = micro_batch is planned.micro_batches[-1]
        loss, rows = micro_batch_loss(model, micro_batch, exchange, planned.shared)
        if last and pipeline is not None:
            pipeline.plan_next()
        with phase("backward"):
            model.engine.backward(loss / divisor, last=last)
        assert rows.grad is not None
        with phase("exchange"):
            model.table.add_row_gradients(exchange, rows.grad)
        loss_sum += loss.detach()
    if pipeline is not None:
        pipeline.send_positions()

    at = f"at step {planned.step} ({position_in_data(planned.batch)})"
    outcome = model.engine.step(lr=lr, loss=loss_sum / divisor, at=at, flag=stop_requested)
    return StepResult(
        loss=outcome.loss,
        grad_norm=outcome.grad_norm,
        num_targets=num_targets,
        stop_requested=outcome.flag,
        table_bytes=model.table.take_bytes_sent(),
    )


def micro_batch_loss(
    model: Model, micro_batch: PlannedMicroBatch, exchange: RowExchange, shared: Tensor | None
) -> tuple[Tensor, Tensor]:
    """Look up the rows of a micro-batch and compute its loss. Collective.

    Args:
        shared: (M,) int64, item ids of the shared negatives.

    Returns:
        The loss summed over targets, a float32 scalar, and the rows (U + 1, D) that collect gradients.
    """
    with phase("exchange"):
        rows = model.table.lookup(exchange)
    with phase("encoder"):
        embedded = gather_rows(rows, micro_batch.input_index, micro_batch.entries)
        hidden = model.engine(embedded, micro_batch.seq_idx, micro_batch.keys, None, micro_batch.inputs)
        hidden = hidden.flatten(0, 1).index_select(0, micro_batch.slots).float()
    with phase("loss"):
        entries = micro_batch.entries
        inputs = LossInputs(
            hidden=hidden,
            rows=rows,
            entries=entries and entries.skip(micro_batch.input_index.numel()),
            positives=micro_batch.positives,
            positive_index=micro_batch.positive_index,
            negative_index=micro_batch.negative_index,
            shared=shared,
            cross_entropy=lambda h, items: full_softmax_loss(h, items, model.table, anchor=rows[0, 0]),
        )
        return model.loss(inputs), rows


def position_in_data(batch: Batch) -> str:
    """Describe where in the data a batch lies, for an error message."""
    lanes = sorted(set(batch.row_lanes.tolist()))
    shown = f"{lanes[0]} to {lanes[-1]}" if lanes else "none"
    return f"epoch {batch.epoch}, step {batch.step} of the epoch, rows of lanes {shown}"
