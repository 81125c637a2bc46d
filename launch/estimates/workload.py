"""What a run's plan needs to know of its dataset: steps, fill and segments of an epoch, and popularity."""

from dataclasses import dataclass

import numpy as np

from longplay.data_shards.storage.dataset import Dataset
from longplay.data_shards.stream.epoch_order import EpochOrder, usable_lanes
from longplay.data_shards.stream.train_stream import TrainStream
from longplay.launch.settings.config import RunConfig
from longplay.models.base.segments import SMALLEST_BUCKET

_SAMPLED_ROWS = 20_000
_COUNT_BLOCK = 1 << 20


@dataclass(frozen=True, kw_only=True)
class Workload:
    """What the formulas need to know of a dataset under one configuration.

    Attributes:
        num_lanes: lanes that are dealt to the ranks.
        steps_per_epoch, targets_per_epoch: of the first epoch.
        num_segments: of the first epoch.
        filled: slots that are not padding, of all.
        padding: slots of the segments' padded rectangles per slot, at least 1.
        probabilities: (num_items,) each item's share of the events.
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


def measure_workload(
    config: RunConfig, dataset: Dataset, *, world_size: int, epoch_order: EpochOrder | None = None
) -> Workload:
    """Steps, fill and segments of the first epoch."""
    plan = epoch_order or TrainStream(dataset, config.data, world_size=world_size).order(0)
    counts = dataset.items.counts.astype(np.float64)
    slots = plan.num_rows * config.context_length
    return Workload(
        num_lanes=usable_lanes(config.data, dataset.num_shards),
        num_users=dataset.num_users,
        num_items=dataset.num_items,
        num_events=dataset.num_events,
        steps_per_epoch=plan.num_steps,
        targets_per_epoch=plan.num_targets,
        num_segments=sum(len(pool.rows.lengths) for lane in plan.lanes for pool in lane),
        filled=plan.num_targets / slots,
        padding=_rectangle_padding(plan, config.context_length),
        probabilities=counts / counts.sum(),
    )


def _rectangle_padding(plan: EpochOrder, context_length: int) -> float:
    """Slots of `models.base.segments.PaddedBuckets` per slot, of some rows; a row's end is a segment too."""
    lengths: list[np.ndarray] = []
    num_rows = 0
    for pool in (pool for lane in plan.lanes for pool in lane):
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
    """Distinct items among `popular` draws by `probabilities` and `uniform` draws from all items alike."""
    distinct = 0.0
    for block in np.split(probabilities, range(_COUNT_BLOCK, len(probabilities), _COUNT_BLOCK)):
        distinct -= float(np.expm1(-popular * block - uniform / len(probabilities)).sum())
    return distinct
