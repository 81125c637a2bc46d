"""Prepare training steps ahead of time: the batch, the negatives and the start of the row exchange."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import nullcontext
from dataclasses import dataclass

import torch
from torch import Tensor

from longplay.data_shards.stream.train_stream import Batch
from longplay.distributed.runtime.collectives import PendingCollective, all_gather_rows, start_all_reduce_sum
from longplay.distributed.runtime.heartbeat import Heartbeat, no_heartbeat
from longplay.distributed.runtime.phases import phase
from longplay.distributed.table.row_exchange import PendingRowExchange
from longplay.launch.console.stop_request import Interrupts, StopRequested
from longplay.launch.training.model import Model
from longplay.models.base.keyed_random import keyed_integers, row_keys
from longplay.models.losses.negatives import uniform_negatives
from longplay.models.rows.gather import RowEntries

VOID = 1 << 40
"""The number of targets that a rank without a batch reports, more than any step has."""


@dataclass(frozen=True, kw_only=True)
class PlannedMicroBatch:
    """B rows with V targets on the device, and the pending exchange of the table rows that they need.

    Attributes:
        seq_idx: (B, L) int32.
        keys: (B,) int64, keys of the rows' random numbers.
        slots: (V,) int64, flat slots b * L + t that have a target.
        positives: (V,) int64, item ids of the targets.
        exchange: one exchange for inputs, targets and negatives.
        input_index: (B, L) int64, each slot's index into the rows looked up.
        positive_index: (V,) int64, the same for each target; (0,) for a loss without candidates.
        negative_index: (V, K), (M,) or (0,) int64, the same for the negatives; see `Candidates`.
        entries: the entries of each row, from the first input on; None where PyTorch sums row gradients.
        inputs: (B, L) each, the tensors of the encoder's input stage; None for an encoder of items only.
    """

    seq_idx: Tensor
    keys: Tensor
    slots: Tensor
    positives: Tensor
    exchange: PendingRowExchange
    input_index: Tensor
    positive_index: Tensor
    negative_index: Tensor
    entries: RowEntries | None
    inputs: dict[str, Tensor] | None


@dataclass(frozen=True, kw_only=True)
class PlannedStep:
    """This rank's part of one training step.

    Attributes:
        step: number of the step, from 1.
        num_targets: () int64, the sum over ranks, in flight; at least VOID if the step is void.
        shared: (M,) int64, item ids of the shared negatives; None for other candidates.
    """

    batch: Batch
    step: int
    num_targets: PendingCollective
    shared: Tensor | None
    micro_batches: list[PlannedMicroBatch]


class StepPipeline:
    """Plan the steps of a run in order; `train_step` plans the next one while it runs the current one.

    Args:
        batches: this rank's batches.
        first_step: number of the first batch's step.
        epoch: the first batch's epoch.
        heartbeat: the watchdog's.
        interrupts: a stop request's; ends the wait for a batch. The rank then plans a void step.
    """

    def __init__(
        self,
        model: Model,
        batches: Iterator[Batch],
        *,
        first_step: int = 1,
        epoch: int = 0,
        heartbeat: Heartbeat = no_heartbeat,
        interrupts: Interrupts = nullcontext,
    ) -> None:
        self._model, self._batches, self._heartbeat = model, batches, heartbeat
        self._epoch, self._interrupts = epoch, interrupts
        self._next_step, self._current_step = first_step, first_step
        self._planned: PlannedStep | None = None
        self._data_wait_s = 0.0

    def take(self) -> PlannedStep:
        """Return the next step; plan it now unless it is planned already. Collective."""
        if self._planned is None:
            self._model.side.mark()
            self.plan_next()
        planned, self._planned = self._planned, None
        assert planned is not None
        self._current_step = planned.step
        self._heartbeat(f"training step {planned.step}")
        return planned

    def plan_next(self) -> None:
        """Read the next batch and start planning its step, unless it is planned already. Collective."""
        if self._planned is not None:
            return
        began = time.perf_counter()
        self._heartbeat(f"reading the batch of step {self._next_step}")
        batch = None
        try:
            with phase("data wait"), self._interrupts():
                batch = next(self._batches)
                self._epoch = batch.epoch
        except StopRequested:
            pass
        self._data_wait_s += time.perf_counter() - began
        self._heartbeat(f"training step {self._current_step}")
        batch, void = batch or no_rows(self._model, self._epoch), batch is None
        self._planned = plan_step(self._model, batch, self._next_step, void=void)
        self._next_step += 1

    def send_positions(self) -> None:
        """Send the positions of the table rows that the planned step needs. Collective.

        Waits for the numbers of rows, so call it after other work has been started.
        """
        if self._planned is None:
            return
        with self._model.side.stream(), phase("exchange"):
            for micro_batch in self._planned.micro_batches:
                micro_batch.exchange.send_positions()

    def take_data_wait_s(self) -> float:
        """Return the seconds spent waiting for batches since the last call."""
        waited, self._data_wait_s = self._data_wait_s, 0.0
        return waited


def plan_step(model: Model, batch: Batch, step: int, *, void: bool = False) -> PlannedStep:
    """Draw a step's negatives and start its exchanges. Collective.

    Reads neither weights nor gradients, so that on a GPU it runs on the model's side stream while another
    step runs on the main stream. Call `model.side.mark()` first.

    Args:
        void: whether this rank is to stop and has no batch; no rank trains a step that is void on one.
    """
    with model.side.stream():
        with phase("negatives"):
            # One rank needs no sum, so its count stays on the CPU and nothing waits for the device.
            where = model.world.device if model.world.world_size > 1 else None
            count = torch.tensor(VOID if void else len(batch.target_slots), device=where)
            num_targets = start_all_reduce_sum(count, model.world)
            shared = draw_shared_negatives(model, batch, step)
        parts = split_rows(batch, model.config.engine.gradient_accumulation_steps)
        micro_batches = [plan_micro_batch(model, rows, shared, step) for rows in parts]
    return PlannedStep(
        batch=batch, step=step, num_targets=num_targets, shared=shared, micro_batches=micro_batches
    )


def plan_micro_batch(model: Model, batch: Batch, shared: Tensor | None, step: int) -> PlannedMicroBatch:
    """Copy one micro-batch to the device, draw its negatives and start its exchange. Collective."""
    device, num_negatives = model.world.device, model.config.loss.num_negatives
    item_ids = batch.item_ids.to(device, non_blocking=True)
    keys = keys_of_rows(model, batch, step)
    slots = batch.target_slots.to(device, non_blocking=True)
    positives = batch.targets.to(device, non_blocking=True).flatten()[slots]
    with phase("negatives"):
        match model.loss.candidates:
            case "none":
                candidates = negatives = positives[:0]
            case "shared":
                assert shared is not None
                candidates, negatives = positives, shared
            case "per_target":
                negatives = uniform_negatives(
                    keys,
                    slots,
                    positives,
                    length=item_ids.shape[1],
                    num_negatives=num_negatives,
                    num_items=model.table.num_items,
                )
                candidates = positives
    with phase("exchange"):
        needed = [item_ids.flatten(), candidates, negatives.flatten()]
        exchange, index, entries = model.table.start_exchange(torch.cat(needed))
    input_index, positive_index, negative_index = index.split([ids.numel() for ids in needed])
    return PlannedMicroBatch(
        seq_idx=batch.seq_idx.to(device, non_blocking=True),
        keys=keys,
        slots=slots,
        positives=positives,
        exchange=exchange,
        input_index=input_index.view(item_ids.shape),
        positive_index=positive_index,
        negative_index=negative_index.view(negatives.shape),
        entries=entries,
        inputs=model.inputs.of_batch(batch, device),
    )


def draw_shared_negatives(model: Model, batch: Batch, step: int) -> Tensor | None:
    """Draw the negatives (M,) that all targets of the global batch share, the same on every rank. Collective.

    Returns None if the loss has no shared negatives.
    """
    loss, device = model.config.loss, model.world.device
    if model.loss.shared is None:
        return None
    zero = torch.zeros(1, dtype=torch.int64)
    key = row_keys(model.config.seed, step, zero - 1, zero)  # lane -1 has no rows
    key = key.to(device, non_blocking=True)
    if loss.negatives != "in_batch":
        return model.loss.shared.draw(key, loss.num_negatives)
    targets, _ = all_gather_rows(batch.targets[batch.targets > 0].to(device), model.world)
    if not targets.shape[0]:  # a batch without targets uses no negatives either
        return torch.ones(loss.num_negatives, dtype=torch.int64, device=device)
    return targets[keyed_integers(key, 0, loss.num_negatives, targets.shape[0])[0]]


def keys_of_rows(model: Model, batch: Batch, step: int) -> Tensor:
    """Derive each row's key (B,) int64 from its position in the data, for any rank and micro-batch."""
    # On the CPU, because launching a GPU kernel per operation takes longer for a few numbers.
    keys = row_keys(model.config.seed, step, batch.row_lanes, batch.row_numbers)
    return keys.to(model.world.device, non_blocking=True)


def no_rows(model: Model, epoch: int) -> Batch:
    """Return a batch without rows."""
    ids = torch.zeros(0, model.config.context_length, dtype=torch.int64)
    none = torch.zeros(0, dtype=torch.int64)
    features = {name: ids.float() for name in model.inputs.columns.names}
    return Batch(epoch, 0, ids, ids, ids.int(), none, none, features=features)


def split_rows(batch: Batch, parts: int) -> Iterator[Batch]:
    """Split a rank's rows into `parts` micro-batches; an empty one becomes a row of padding."""
    if parts == 1 and len(batch.item_ids):
        yield batch
        return
    for number in range(parts):
        rows = batch.map(lambda tensor, number=number: tensor.tensor_split(parts)[number])  # stays pinned
        if rows.item_ids.shape[0] == 0:
            rows = rows.map(lambda tensor: tensor.new_zeros(1, *tensor.shape[1:]))
        yield rows
