"""A training step before it runs: its rows on the device, what they draw, which table rows they need."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from longplay.data_shards.stream.train_stream import Batch
from longplay.distributed.runtime.collectives import PendingCollective, all_gather_rows, start_all_reduce_sum
from longplay.distributed.runtime.phases import phase
from longplay.distributed.table.row_exchange import PendingRowExchange
from longplay.launch.training.model import Model
from longplay.models.base.keyed_random import keyed_integers, row_keys
from longplay.models.losses.negatives import target_keys, uniform_negatives


@dataclass(frozen=True, kw_only=True)
class PlannedRows:
    """A micro-batch of B rows with V targets on the device; its exchange of table rows is being planned.

    Attributes:
        seq_idx: (B, L) int32.
        keys: (B,) of the rows' random numbers.
        slots: (V,) the slots, flattened, that have a target.
        positives: (V,) the targets' items.
        planning: of one exchange for inputs, targets and negatives.
        inputs: (B, L), where in the rows looked up each slot's item stands.
        candidates: where in them the targets stand, (V,), and their negatives, (V * K,) or (M,); empty for a
            full softmax.
    """

    seq_idx: Tensor
    keys: Tensor
    slots: Tensor
    positives: Tensor
    planning: PendingRowExchange
    inputs: Tensor
    candidates: list[Tensor]


@dataclass(frozen=True, kw_only=True)
class PlannedStep:
    """Step number `step` (from 1) of this rank.

    Attributes:
        num_targets: () int64, being summed over ranks.
        shared: (M,) the items of negatives that all targets share; None where each draws its own.
    """

    batch: Batch
    step: int
    num_targets: PendingCollective
    shared: Tensor | None
    micro_batches: list[PlannedRows]

    def send_positions(self) -> None:
        """Send which table rows are wanted; to be called once there is other work to do meanwhile."""
        for rows in self.micro_batches:
            rows.planning.send_positions()


def plan_step(model: Model, batch: Batch, step: int) -> PlannedStep:
    """Plan step number `step` of this rank's rows. Every rank must call.

    It reads neither weights nor gradients, so that it may run beside the step before. On a GPU it does, on
    the model's side stream; `model.side.mark()` comes before it, at the latest where no step is under way.
    """
    device = model.world.device
    with model.side.beside():
        with phase("negatives"):
            count = torch.tensor(int((batch.targets > 0).sum()), device=device)
            num_targets = start_all_reduce_sum(count, model.world)
            shared = draw_shared(model, batch, step)
        parts = split_rows(batch, model.config.engine.gradient_accumulation_steps)
        micro_batches = [plan_rows(model, rows, shared, step) for rows in parts]
    return PlannedStep(
        batch=batch, step=step, num_targets=num_targets, shared=shared, micro_batches=micro_batches
    )


def plan_rows(model: Model, batch: Batch, shared: Tensor | None, step: int) -> PlannedRows:
    """Bring one micro-batch to the device, draw its negatives and begin to plan its exchange. Every rank must
    call.
    """
    loss, table, device = model.config.loss, model.table, model.world.device
    item_ids = batch.item_ids.to(device, non_blocking=True)
    keys = rows_keys(model, batch, step)
    # Found on the CPU, where the batch is: on a GPU their number would have to be waited for.
    slots = batch.targets.flatten().nonzero().squeeze(1).to(device, non_blocking=True)
    positives = batch.targets.to(device, non_blocking=True).flatten()[slots]
    with phase("negatives"):
        wanted = [item_ids.flatten()]
        if shared is not None:
            wanted += [positives, shared]
        elif loss.name != "full_softmax":
            length = item_ids.shape[1]
            target_key = target_keys(keys[slots // length], slots % length)
            drawn = uniform_negatives(target_key, positives, loss.num_negatives, table.num_items)
            wanted += [positives, drawn.flatten()]
    with phase("exchange"):
        planning, index = table.begin_exchange(torch.cat(wanted))
    inputs, *candidates = index.split([ids.numel() for ids in wanted])
    return PlannedRows(
        seq_idx=batch.seq_idx.to(device, non_blocking=True),
        keys=keys,
        slots=slots,
        positives=positives,
        planning=planning,
        inputs=inputs.view(item_ids.shape),
        candidates=candidates,
    )


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


class StepPipeline:
    """Plans a run's steps in their order, each while the one before is under way.

    Args:
        first_step: number of the first batch's step.
        heartbeat: told what is being waited for.
    """

    def __init__(
        self,
        model: Model,
        batches: Iterator[Batch],
        *,
        first_step: int = 1,
        heartbeat: Callable[[str], None] = lambda doing: None,
    ) -> None:
        self._model, self._batches, self._heartbeat = model, batches, heartbeat
        self._step, self._under_way = first_step, first_step
        self._planned: PlannedStep | None = None
        self._data_wait = 0.0

    def plan_next(self) -> None:
        """Plan one step more, unless one is planned. Every rank must call."""
        if self._planned is not None:
            return
        began = time.perf_counter()
        self._heartbeat(f"reading the batch of step {self._step}")
        with phase("data wait"):
            batch = next(self._batches)
        self._data_wait += time.perf_counter() - began
        self._heartbeat(f"training step {self._under_way}")
        self._planned = plan_step(self._model, batch, self._step)
        self._step += 1

    def send_positions(self) -> None:
        """Let the planned step's exchange go on. Every rank must call."""
        if self._planned is not None:
            with self._model.side.beside(), phase("exchange"):
                self._planned.send_positions()

    def take(self) -> PlannedStep:
        """The next step. Every rank must call."""
        if self._planned is None:
            self._model.side.mark()
            self.plan_next()
        planned, self._planned = self._planned, None
        assert planned is not None
        self._under_way = planned.step
        self._heartbeat(f"training step {planned.step}")
        return planned

    def take_data_wait(self) -> float:
        """Seconds spent waiting for batches since the last call."""
        waited, self._data_wait = self._data_wait, 0.0
        return waited
