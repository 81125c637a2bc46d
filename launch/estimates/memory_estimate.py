"""What a run takes, before it starts: bytes per rank, bytes on the wire, steps.

Nothing here starts a process group or allocates what it counts. Every number is a formula of the
configuration and of the dataset's lengths and counts; `benchmarks/plan.py` compares them with measured peaks.
"""

import dataclasses
from dataclasses import dataclass

import torch

from longplay.common.sizes import gib, mib
from longplay.data_shards.storage.dataset import Dataset
from longplay.data_shards.storage.shard_store import DEFAULT_CACHE_BYTES
from longplay.data_shards.stream.epoch_order import EpochOrder
from longplay.distributed.runtime.memory import available_memory
from longplay.distributed.runtime.world import World, local_world_size
from longplay.distributed.table.full_softmax import chunk_elements
from longplay.launch.estimates.workload import Workload, expected_distinct, measure_workload
from longplay.launch.settings.config import RunConfig
from longplay.models.base.activations import Execution
from longplay.models.encoder import activation_bytes, num_parameters
from longplay.models.losses.base import LOSSES, LossLoad

_RUNTIME_BYTES = {"cpu": 450 << 20, "cuda": 1 << 30}  # interpreter and libraries; CUDA's is assumed
# glibc keeps and fragments what it is given back: measured as the growth of resident memory beyond what
# tensors take at their peak, in benchmarks/plan.py.
_ALLOCATOR_BYTES, _ALLOCATOR_SHARE = 24 << 20, 0.35
ALLOCATOR = "allocator's reserve"
_SLOT_BYTES = 20  # of a batch: two int64 and one int32 per slot
_SEGMENT_BYTES = 32  # of an epoch's plan


@dataclass(frozen=True, kw_only=True)
class MemoryEstimate:
    """Bytes per rank, of the rank that has most, and what it adds up to.

    Attributes:
        kept: name -> bytes that are there throughout.
        passing: name -> bytes at the peak of a step.
        host: name -> bytes in the machine's memory; on a CPU they share the limit with the others.
        wire: name -> bytes that a rank sends per step.
        limit_bytes: memory of one rank; None if it is not known.
        limit_is: where the limit comes from, for a message.
        steps_per_epoch, targets_per_epoch: of the first epoch.
        slots: of one micro-batch.
    """

    recipe: str
    world_size: int
    device_type: str
    kept: dict[str, int]
    passing: dict[str, int]
    host: dict[str, int]
    wire: dict[str, int]
    limit_bytes: int | None
    limit_is: str
    steps_per_epoch: int
    targets_per_epoch: int
    slots: int

    @property
    def step_bytes(self) -> int:
        """What PyTorch allocates at its peak: tables, states, weights and activations."""
        return sum(self.kept.values()) + sum(self.passing.values())

    @property
    def total_bytes(self) -> int:
        """All of a rank's memory that the limit applies to, libraries included."""
        host = sum(self.host.values()) if self.device_type == "cpu" else 0
        return self.step_bytes + host + _RUNTIME_BYTES[self.device_type]

    def fits(self, certainty: float = 1.0) -> bool:
        """Whether the total over `certainty` is within the limit; above 1, only what surely cannot fit does
        not.
        """
        return self.limit_bytes is None or self.total_bytes <= certainty * self.limit_bytes

    def line(self) -> str:
        """The plan as one line."""
        limit = "" if self.limit_bytes is None else f" of {gib(self.limit_bytes)} ({self.limit_is})"
        parts = {"table": 0, "encoder": 0, "activations": 0, "loss": 0}
        for name, size in (self.kept | self.passing).items():
            part = name.split()[0].rstrip(",")
            parts[part] = parts.get(part, 0) + size
        shown = ", ".join(f"{name} {gib(size)}" for name, size in parts.items())
        return f"memory   about {gib(self.total_bytes)} per rank{limit}: {shown}"

    def table(self) -> str:
        """The plan as a table of lines."""
        lines = [f"per rank, {self.world_size} on {self.device_type}, micro-batches of {self.slots:,} slots"]
        groups = {"kept": self.kept, "at a step's peak": self.passing, "in the machine's memory": self.host}
        for group, entries in groups.items():
            lines.append(f"{group}:")
            lines += [f"  {name:<38}{mib(size):>16}" for name, size in entries.items() if size]
        lines.append(f"  {'interpreter and libraries':<38}{mib(_RUNTIME_BYTES[self.device_type]):>16}")
        limit = "" if self.limit_bytes is None else f"  of {gib(self.limit_bytes)}, {self.limit_is}"
        lines.append(f"{'total':<40}{mib(self.total_bytes):>16}{limit}")
        if self.wire:
            lines.append("sent per step:")
            lines += [f"  {name:<38}{mib(size):>16}" for name, size in self.wire.items()]
        lines.append(
            f"an epoch: {self.steps_per_epoch:,} steps, {self.targets_per_epoch:,} events trained on"
        )
        return "\n".join(lines)


def plan_run(
    config: RunConfig,
    dataset: Dataset,
    *,
    world_size: int = 1,
    device_type: str | None = None,
    memory_bytes: int | None = None,
    local_ranks: int | None = None,
    epoch_order: EpochOrder | None = None,
) -> MemoryEstimate:
    """Estimate a run; reads the dataset's lengths and counts, and its shards only for a temporal split.

    Args:
        device_type: "cpu" or "cuda"; None: what `train.device` would take here.
        memory_bytes: of one rank; None: the GPU's, or this machine's available memory over `local_ranks`.
        local_ranks: ranks on one machine; None: as torchrun or srun tell, else all of them.
        epoch_order: of epoch 0, where the caller has it, as it takes a while for many users.
    Raises:
        DataError: more ranks than lanes, or nothing to train on.
    """
    device_type = device_type or _device_type(config)
    limit, limit_is = memory_bytes, "as given"
    if limit is None:
        limit, limit_is = available_memory(device_type, local_ranks or local_world_size(world_size))
    workload = measure_workload(config, dataset, world_size=world_size, epoch_order=epoch_order)
    plan = estimate(config, workload, world_size=world_size, device_type=device_type)
    return dataclasses.replace(plan, limit_bytes=limit, limit_is=limit_is)


# ---------------------------------------------------------------------- the formulas


def estimate(config: RunConfig, workload: Workload, *, world_size: int, device_type: str) -> MemoryEstimate:
    """The plan of one configuration, without a limit."""
    width, context_length = config.encoder.d_model, config.context_length
    rows_of_rank = -(-workload.num_lanes // world_size) * (config.data.rows_per_step // workload.num_lanes)
    slots = -(-rows_of_rank // config.engine.gradient_accumulation_steps) * context_length
    targets = workload.filled * slots
    shard = -(-workload.num_items // world_size) * width * 4
    loss = LOSSES[config.loss.name](config.loss, num_items=workload.num_items)
    lookups = loss.lookups(targets)
    distinct = expected_distinct(
        workload.probabilities, popular=lookups.by_popularity, uniform=lookups.uniform
    )
    rows = int(distinct * width * 4)
    weights = num_parameters(config.encoder)

    kept = _encoder_bytes(config, weights, world_size, device_type)
    table_on_host = config.table.placement == "host" and device_type == "cuda"
    if not table_on_host:
        kept = _table_bytes(config, shard) | kept
    execution = Execution(
        device_type=device_type, bf16=config.engine.precision == "bf16", padding=workload.padding
    )
    per_slot = activation_bytes(config.encoder, execution)
    loss_cost = loss.cost(
        LossLoad(
            num_targets=targets,
            width=width,
            world_size=world_size,
            rows_per_rank=-(-workload.num_items // world_size),
            logits_at_once=chunk_elements(World(world_size=world_size, device=torch.device(device_type))),
        )
    )
    # Looked-up rows, their gradient, and one that is being added to it; gradients of earlier micro-batches.
    exchange = 3 * rows + (config.engine.gradient_accumulation_steps - 1) * rows + int(8 * 8 * distinct)
    passing = {
        "activations kept for the backward": int(slots * per_slot.saved),
        "loss, kept for the backward": loss_cost.saved_bytes,
        "activations or loss, at work": int(max(slots * per_slot.transient, loss_cost.working_bytes)),
        "rows looked up, and gradients": exchange,
        "encoder gradients": 4 * weights,
    }
    # The optimizer's step comes when activations are gone; it needs more only beside a large table.
    step_work = 3 * shard if loss.dense_gradient or config.table.update == "zero_dense" else 5 * rows
    if step_work > sum(passing.values()):
        passing = {"table, the optimizer's step at work": step_work}
    host = _host_bytes(config, workload, rows_of_rank, world_size)
    if table_on_host:
        host = _table_bytes(config, shard) | host
    if device_type == "cuda":
        kept["batch"] = _SLOT_BYTES * slots
    else:
        host[ALLOCATOR] = _ALLOCATOR_BYTES + int(_ALLOCATOR_SHARE * sum(passing.values()))
    return MemoryEstimate(
        recipe=config.recipe,
        world_size=world_size,
        device_type=device_type,
        kept=kept,
        passing=passing,
        host=host,
        wire=_wire_bytes(config, distinct, weights, loss_cost.sent_bytes, world_size),
        limit_bytes=None,
        limit_is="",
        steps_per_epoch=workload.steps_per_epoch,
        targets_per_epoch=workload.targets_per_epoch,
        slots=slots,
    )


def _table_bytes(config: RunConfig, shard: int) -> dict[str, int]:
    """What a rank keeps of the table: as `ItemTable.bytes_per_rank`."""
    if config.table.update == "zero_dense":
        return {"table weights": 2 * shard, "table optimizer": 2 * shard, "table gradient": shard}
    if config.table.optimizer.name == "adagrad":
        return {"table weights": shard, "table optimizer": shard // config.encoder.d_model}
    return {"table weights": shard, "table optimizer": 2 * shard}


def _encoder_bytes(config: RunConfig, weights: int, world_size: int, device_type: str) -> dict[str, int]:
    """What DeepSpeed keeps of the encoder: fp32 weights, a second fp32 copy and two moments of this rank's
    part; the reduction buckets that hold gradients on their way.
    """
    part = -(-weights // world_size)
    bucket = config.engine.reduce_bucket_elements
    if device_type == "cpu":
        bucket = min(bucket, weights)  # pages that are never touched take no memory
    elif config.engine.zero_stage < 3:
        bucket *= 2  # two, as communication overlaps
    gradients = part if config.engine.zero_stage > 1 else 0
    return {
        "encoder weights": 4 * (weights + (part if config.engine.zero_stage == 3 else 0)),
        "encoder optimizer": 12 * part,
        "encoder gradient partition": 4 * gradients,
        "encoder reduction buckets": 4 * bucket,
    }


def _host_bytes(config: RunConfig, workload: Workload, rows_of_rank: int, world_size: int) -> dict[str, int]:
    """Batches made ahead, decoded shards, and the tables of users, items and segments."""
    data = config.data
    lanes = -(-workload.num_lanes // world_size)
    pool = min(data.pool_events(), workload.num_events // workload.num_lanes)
    index = 8 * 5 * workload.num_items + 8 * 4 * workload.num_users
    return {
        "batches made ahead": (data.prefetch_steps + 2) * rows_of_rank * config.context_length * _SLOT_BYTES,
        "stream: decoded shards": min(DEFAULT_CACHE_BYTES, 4 * workload.num_events) + 4 * pool * lanes,
        "stream: users, items, segments": index + 2 * _SEGMENT_BYTES * workload.num_segments,
    }


def _wire_bytes(
    config: RunConfig, distinct: float, weights: int, loss_bytes: float, world_size: int
) -> dict[str, int]:
    """Bytes that one rank sends in a step; nothing for one rank alone."""
    if world_size == 1:
        return {}
    away, width = (world_size - 1) / world_size, config.encoder.d_model
    micro_batches, stage = config.engine.gradient_accumulation_steps, config.engine.zero_stage
    rows = distinct * away * (8 + 2 * 4 * width) * micro_batches
    # reduce-scatter of gradients and all-gather of weights; stage 3 gathers again for the backward
    passes = 2 if stage == 1 else 1 + micro_batches if stage == 2 else 3 * micro_batches
    wire = {"table rows and their gradients": int(rows), "encoder": int(4 * weights * away * passes)}
    if loss_bytes:
        wire["loss: hidden states and their gradient"] = int(loss_bytes * micro_batches)
    return wire


# ---------------------------------------------------------------------- what is here


def _device_type(config: RunConfig) -> str:
    if config.train.device != "auto":
        return config.train.device
    return "cuda" if torch.cuda.is_available() else "cpu"
