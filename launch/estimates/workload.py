"""The numbers of a dataset that an estimate depends on: steps, fill and segments of an epoch, popularity."""

from dataclasses import dataclass

import numpy as np

from longplay.data_shards.storage.dataset import Dataset
from longplay.data_shards.stream.epoch_order import EpochOrder, usable_lanes
from longplay.data_shards.stream.train_stream import TrainStream
from longplay.launch.inputs.event_inputs import load_inputs
from longplay.launch.settings.config import RunConfig
from longplay.models.base.segments import SMALLEST_BUCKET
from longplay.models.inputs.spec import InputSpec

_SAMPLED_ROWS = 20_000
_COUNT_BLOCK = 1 << 20


@dataclass(frozen=True, kw_only=True)
class Workload:
    """The size of a dataset under one configuration.

    Attributes:
        num_lanes: lanes that are distributed over the ranks.
        steps_per_epoch, targets_per_epoch, num_segments: numbers of the first epoch.
        filled: fraction of the slots that have a target.
        padding: slots of the padded segment buckets per slot of the rows, at least 1.
        probabilities: (num_items,) float64, each item's share of the events.
        inputs: the encoder's inputs besides the items.
        column_bytes: bytes of the streamed columns per event, besides the items.
    """

    num_lanes: int
    num_users: int
    num_items: int
    num_events: int
    steps_per_epoch: int
    targets_per_epoch: int
    num_segments: int
    filled: float
    padding: float
    probabilities: np.ndarray
    inputs: InputSpec
    column_bytes: int


def measure_workload(
    config: RunConfig, dataset: Dataset, *, world_size: int, epoch_order: EpochOrder | None = None
) -> Workload:
    """Measure the first epoch of a dataset.

    Args:
        epoch_order: order of epoch 0; None = compute it.

    Raises:
        DataError: there are more ranks than lanes, the split leaves nothing to train on, or the dataset lacks
            an input.
    """
    order = epoch_order or TrainStream(dataset, config.data, world_size=world_size).order(0)
    inputs = load_inputs(config.inputs, dataset)
    counts = dataset.item_counts.astype(np.float64)
    slots = order.num_rows * config.context_length
    return Workload(
        num_lanes=usable_lanes(config.data, dataset.num_shards),
        num_users=dataset.num_users,
        num_items=dataset.num_items,
        num_events=dataset.num_events,
        steps_per_epoch=order.num_steps,
        targets_per_epoch=order.num_targets,
        num_segments=sum(len(pool.rows.lengths) for lane in order.lanes for pool in lane),
        filled=order.num_targets / slots,
        padding=_rectangle_padding(order, config.context_length),
        probabilities=counts / counts.sum(),
        inputs=inputs.spec,
        column_bytes=inputs.columns.bytes_per_event,
    )


def _rectangle_padding(order: EpochOrder, context_length: int) -> float:
    """Estimate `Workload.padding` from the first rows; a row's padding counts as a segment."""
    lengths: list[np.ndarray] = []
    num_rows = 0
    for pool in (pool for lane in order.lanes for pool in lane):
        filled = np.add.reduceat(pool.rows.lengths, pool.rows.row_ptr[:-1])
        rest = context_length - filled
        lengths += [pool.rows.lengths, rest[rest > 0]]
        num_rows += pool.rows.num_rows
        if num_rows >= _SAMPLED_ROWS:
            break
    every = np.concatenate(lengths)
    rectangles = np.maximum(SMALLEST_BUCKET, 2 ** np.ceil(np.log2(np.maximum(every, 1))))
    return float(np.minimum(rectangles, context_length).sum() / every.sum())


def expected_distinct(probabilities: np.ndarray, *, popular: float, uniform: float) -> float:
    """Return the expected number of distinct items among draws.

    Args:
        probabilities: (num_items,) float64.
        popular: number of draws in proportion to `probabilities`.
        uniform: number of draws from the uniform distribution.
    """
    distinct = 0.0
    for block in np.split(probabilities, range(_COUNT_BLOCK, len(probabilities), _COUNT_BLOCK)):
        distinct -= float(np.expm1(-popular * block - uniform / len(probabilities)).sum())
    return distinct
