"""The settings of the split and of the training stream. Importing this module does not import torch."""

from dataclasses import field
from typing import Literal

from longplay.common.settings import Count, InnerFraction, NonNegativeInt, settings_class
from longplay.data_shards.errors import OnBadShard

_MIN_POOL_ROWS = 512
_MIN_POOL_EVENTS = 1_000_000


@settings_class
class SplitConfig:
    """How events are divided into training, validation and test.

    Attributes:
        kind: leave_one_out = the last event of a user is for test, the one before it for validation.
            temporal = two points in time, the same for all users, divide the events; validation and test
            predict the first event of a user in their period from all events before it.
        val_fraction: Fraction of all events in the validation period. Used by temporal only.
        test_fraction: Fraction of all events in the test period. Used by temporal only.
    """

    kind: Literal["leave_one_out", "temporal"] = "leave_one_out"
    val_fraction: InnerFraction = 0.1
    test_fraction: InnerFraction = 0.1

    def __post_init__(self) -> None:
        if self.val_fraction + self.test_fraction >= 1:
            raise ValueError(
                f"val_fraction={self.val_fraction}: the sum with test_fraction = {self.test_fraction} must "
                "be below 1, so that events remain for training"
            )


@settings_class
class StreamConfig:
    """How training rows are cut, packed, ordered and read.

    Attributes:
        context_length: Slots in a row.
        rows_per_step: Rows of one optimizer step, over all ranks and micro-batches.
        num_lanes: Independent parts of the stream. Each rank owns whole lanes, so this is the maximum number
            of ranks.
        mode: windows = train on every transition once per epoch; last = train on each user's latest
            `context_length` transitions.
        split: How events are divided into training, validation and test.
        seed: Seed of the order and the cuts.
        pool_rows: Minimum number of rows that are packed and shuffled together. None = 512 rows or a
            million events, whichever is more.
        prefetch_steps: Steps prepared ahead in the background. 0 = none; rows are filled when a step needs
            them.
        reader_threads: Threads of each rank that read shards and fill rows, at most one per lane. 0 = no
            background threads, as with `prefetch_steps` 0. Does not change the batches.
        on_bad_shard: Stop at a missing, truncated or corrupt shard, or skip it with a warning.
    """

    context_length: Count = 200
    rows_per_step: Count = 120
    num_lanes: Count = 12
    mode: Literal["windows", "last"] = "windows"
    split: SplitConfig = field(default_factory=SplitConfig)
    seed: NonNegativeInt = 0
    pool_rows: Count | None = None
    prefetch_steps: NonNegativeInt = 2
    reader_threads: NonNegativeInt = 1
    on_bad_shard: OnBadShard = "stop"

    def __post_init__(self) -> None:
        if self.rows_per_step % self.num_lanes:
            below = self.rows_per_step // self.num_lanes * self.num_lanes
            nearest = " or ".join(str(n) for n in (below, below + self.num_lanes) if n)
            raise ValueError(
                f"rows_per_step={self.rows_per_step}: must be a multiple of num_lanes = {self.num_lanes}; "
                f"nearest valid: {nearest}"
            )

    def pool_events(self) -> int:
        """Return the minimum number of events in a pool. A lane's last pool may have fewer."""
        if self.pool_rows is not None:
            return self.pool_rows * self.context_length
        return max(_MIN_POOL_ROWS * self.context_length, _MIN_POOL_EVENTS)
