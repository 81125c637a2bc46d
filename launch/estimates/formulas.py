"""The formulas of an estimate: memory and traffic from the settings and the workload.

Encoders and losses define their own costs; the costs of the table, of DeepSpeed and of the stream are here.
`benchmarks/plan.py` compares the formulas with measured peaks.
"""

from dataclasses import dataclass
from functools import cached_property

import torch

from longplay.data_shards.storage.shard_store import DEFAULT_CACHE_BYTES
from longplay.distributed.runtime.world import World
from longplay.distributed.table.full_softmax import chunk_elements
from longplay.launch.estimates.memory_estimate import ALLOCATOR, MemoryEstimate
from longplay.launch.estimates.workload import Workload, expected_distinct
from longplay.launch.settings.config import RunConfig
from longplay.models.base.activations import Execution
from longplay.models.encoder_size import activation_bytes, num_parameters
from longplay.models.losses.base import LOSSES, Loss, LossCost, LossLoad

# glibc keeps and fragments freed memory. Measured in benchmarks/plan.py: the growth of resident memory beyond
# the peak of the tensors.
_ALLOCATOR_BYTES, _ALLOCATOR_SHARE = 24 << 20, 0.35
_SLOT_BYTES = 20  # of a batch: two int64 and one int32 per slot
_SEGMENT_BYTES = 32  # of an epoch's order, per segment


def estimate_memory(
    config: RunConfig, workload: Workload, *, world_size: int, device_type: str
) -> MemoryEstimate:
    """Estimate one configuration, without a limit.

    Args:
        device_type: "cpu" or "cuda".
    """
    sizes = _Sizes(config, workload, world_size, device_type)
    persistent, host, transient = _encoder_bytes(sizes), _host_bytes(sizes), _transient_bytes(sizes)
    if config.table.placement == "host" and device_type == "cuda":
        host = _table_bytes(sizes) | host
    else:
        persistent = _table_bytes(sizes) | persistent
    if config.table.cached_rows:
        persistent["table rows on the device"] = _cached_bytes(sizes)
    if device_type == "cuda":
        persistent["batch"] = (_SLOT_BYTES + 2 * sizes.workload.inputs.slot_bytes) * sizes.slots
    else:
        host[ALLOCATOR] = _ALLOCATOR_BYTES + int(_ALLOCATOR_SHARE * sum(transient.values()))
    return MemoryEstimate(
        recipe=config.recipe,
        world_size=world_size,
        device_type=device_type,
        persistent=persistent,
        transient=transient,
        host=host,
        wire=_wire_bytes(sizes),
        steps_per_epoch=workload.steps_per_epoch,
        targets_per_epoch=workload.targets_per_epoch,
        slots=sizes.slots,
    )


@dataclass(frozen=True)
class _Sizes:
    """The sizes of one micro-batch on the rank that owns the most lanes; the formulas are built from them."""

    config: RunConfig
    workload: Workload
    world_size: int
    device_type: str

    @cached_property
    def rows_of_rank(self) -> int:
        lanes, workload = -(-self.workload.num_lanes // self.world_size), self.workload
        return lanes * (self.config.data.rows_per_step // workload.num_lanes)

    @cached_property
    def slots(self) -> int:
        rows = -(-self.rows_of_rank // self.config.engine.gradient_accumulation_steps)
        return rows * self.config.context_length

    @cached_property
    def targets(self) -> float:
        return self.workload.filled * self.slots

    @cached_property
    def table_shard_rows(self) -> int:
        return -(-self.workload.num_items // self.world_size)

    @cached_property
    def table_shard_bytes(self) -> int:
        return self.table_shard_rows * self.config.encoder.d_model * 4

    @cached_property
    def weights(self) -> int:
        return num_parameters(self.config.encoder, self.workload.inputs)

    @cached_property
    def loss(self) -> Loss:
        return LOSSES[self.config.loss.name](self.config.loss, num_items=self.workload.num_items)

    @cached_property
    def loss_cost(self) -> LossCost:
        world = World(world_size=self.world_size, device=torch.device(self.device_type))
        return self.loss.cost(
            LossLoad(
                device_type=self.device_type,
                num_targets=self.targets,
                width=self.config.encoder.d_model,
                world_size=self.world_size,
                rows_per_rank=self.table_shard_rows,
                logits_at_once=chunk_elements(world),
            )
        )

    @cached_property
    def distinct_items(self) -> float:
        """Distinct items that a micro-batch looks up."""
        lookups = self.loss.lookups(self.targets)
        probabilities = self.workload.probabilities
        return expected_distinct(probabilities, popular=lookups.by_popularity, uniform=lookups.uniform)


def _transient_bytes(sizes: _Sizes) -> dict[str, int]:
    """Estimate the memory at the peak of a step."""
    config, loss_cost = sizes.config, sizes.loss_cost
    execution = Execution(
        device_type=sizes.device_type,
        bf16=config.engine.precision == "bf16",
        padding=sizes.workload.padding,
    )
    per_slot = activation_bytes(config.encoder, execution, sizes.workload.inputs)
    rows = int(sizes.distinct_items * config.encoder.d_model * 4)
    # The rows, their gradient and one that is added to it, and the gradients of earlier micro-batches.
    row_copies = 3 + (config.engine.gradient_accumulation_steps - 1)
    transient = {
        "activations saved for backward": int(sizes.slots * per_slot.saved),
        "loss, saved for backward": loss_cost.saved_bytes,
        "activations or loss, temporary": int(max(sizes.slots * per_slot.transient, loss_cost.working_bytes)),
        "rows looked up, and gradients": row_copies * rows + int(8 * 8 * sizes.distinct_items),
        "encoder gradients": 4 * sizes.weights,
    }
    if sizes.loss.dense_gradient and config.engine.gradient_accumulation_steps > 1:
        transient["table gradient of earlier micro-batches"] = sizes.table_shard_bytes
    if config.engine.cuda_graph:
        # Copies of the embeddings and of the output's gradient, and memory that the loss cannot reuse.
        copies = 2 * 4 * sizes.slots * config.encoder.d_model
        kept = min(int(sizes.slots * per_slot.transient), loss_cost.working_bytes)
        transient["encoder CUDA graphs"] = copies + kept + 4 * sizes.weights
    # Activations are freed before the optimizer step, which needs more memory only for a large table.
    every_row = sizes.loss.dense_gradient or config.table.update == "zero_dense"
    optimizer_step = 3 * sizes.table_shard_bytes if every_row else 5 * rows
    if optimizer_step > sum(transient.values()):
        return {"table, optimizer step": optimizer_step}
    return transient


def _table_bytes(sizes: _Sizes) -> dict[str, int]:
    """Return the bytes of a rank's table shard; the same numbers as `ItemTable.bytes_per_rank`."""
    table, shard = sizes.config.table, sizes.table_shard_bytes
    if table.update == "zero_dense":
        return {"table weights": 2 * shard, "table optimizer": 2 * shard, "table gradient": shard}
    if table.optimizer.name == "adagrad":
        return {"table weights": shard, "table optimizer": 4 * sizes.table_shard_rows}
    return {"table weights": shard, "table optimizer": 2 * shard}


def _cached_bytes(sizes: _Sizes) -> int:
    """Return the bytes of a rank's cached rows, their optimizer state and the slot of each row."""
    rows, width = min(sizes.config.table.cached_rows, sizes.table_shard_rows), sizes.config.encoder.d_model
    state = 1 if sizes.config.table.optimizer.name == "adagrad" else 2 * width
    return 4 * (rows * (width + state) + sizes.table_shard_rows)


def _encoder_bytes(sizes: _Sizes) -> dict[str, int]:
    """Estimate the bytes that DeepSpeed allocates for the encoder.

    These are the fp32 weights, a second fp32 copy and two moments of this rank's partition, and the buckets
    in which gradients are reduced.
    """
    engine, weights = sizes.config.engine, sizes.weights
    part = -(-weights // sizes.world_size)
    bucket = engine.reduce_bucket_elements
    if sizes.device_type == "cpu":
        bucket = min(bucket, weights)  # pages that are never touched take no memory
    elif engine.zero_stage < 3:
        bucket *= 2  # communication overlaps with computation
    return {
        "encoder weights": 4 * (weights + (part if engine.zero_stage == 3 else 0)),
        "encoder optimizer": 12 * part,
        "encoder gradient partition": 4 * part if engine.zero_stage > 1 else 0,
        "encoder reduction buckets": 4 * bucket,
    }


def _host_bytes(sizes: _Sizes) -> dict[str, int]:
    """Estimate the stream's memory: prefetched batches, decoded shards, and user, item and segment tables."""
    data, workload = sizes.config.data, sizes.workload
    lanes = -(-workload.num_lanes // sizes.world_size)
    pool = min(data.pool_events(), workload.num_events // workload.num_lanes)
    batch = sizes.rows_of_rank * sizes.config.context_length * (_SLOT_BYTES + workload.column_bytes)
    index = 8 * 5 * workload.num_items + 8 * 4 * workload.num_users
    event = 4 + workload.column_bytes
    host = {
        "prefetched batches": (data.prefetch_steps + 2) * batch,
        "stream: decoded shards": min(DEFAULT_CACHE_BYTES, event * workload.num_events)
        + event * pool * lanes,
        "stream: users, items, segments": index + 2 * _SEGMENT_BYTES * workload.num_segments,
    }
    inputs = workload.inputs
    item_bytes = 4 * (len(inputs.item_categories) + inputs.vector_width)
    if item_bytes:
        # The columns themselves, and those gathered for the steps of this rank in training and in planning.
        gathered = 2 * sizes.rows_of_rank * sizes.config.context_length
        host["item categories and vectors"] = item_bytes * (workload.num_items + gathered)
    return host


def _wire_bytes(sizes: _Sizes) -> dict[str, int]:
    """Estimate the bytes that one rank sends in a step; empty for a single rank."""
    world_size, engine, width = sizes.world_size, sizes.config.engine, sizes.config.encoder.d_model
    if world_size == 1:
        return {}
    elsewhere, micro_batches = (world_size - 1) / world_size, engine.gradient_accumulation_steps
    rows = sizes.distinct_items * elsewhere * (8 + 2 * 4 * width) * micro_batches
    # Reduce-scatter of gradients and all-gather of weights; stage 3 gathers again in the backward pass.
    passes = {1: 2, 2: 1 + micro_batches, 3: 3 * micro_batches}[engine.zero_stage]
    wire = {
        "table rows and their gradients": int(rows),
        "encoder": int(4 * sizes.weights * elsewhere * passes),
    }
    if sizes.loss_cost.sent_bytes:
        wire["loss"] = int(sizes.loss_cost.sent_bytes * micro_batches)
    return wire
