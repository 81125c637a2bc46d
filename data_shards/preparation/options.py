"""The options of `prepare`: which events are kept, and how the work is divided to fit into memory."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from longplay.data_shards.errors import DataError

DEFAULT_MEMORY_BYTES = 4 << 30
MIN_MEMORY_BYTES = 256 << 20
SORT_BYTES_PER_EVENT = 72
"""Peak memory of sorting a bucket, measured with `benchmarks/prepare.py`."""
_MAX_BLOCK_BYTES = 64 << 20
_MIN_BLOCK_BYTES = 1 << 20
_MEMORY_PER_BLOCK_BYTE = 12  # per byte of a block of text that is parsed and partitioned
_SHARE_FOR_SORTING = 0.5
_MAX_BUCKETS = 4096


@dataclass(frozen=True, kw_only=True)
class PrepareOptions:
    """Which events to keep, and how to write them.

    Attributes:
        min_user_events, min_item_events: users and items with fewer events are dropped, repeatedly until both
            limits hold. A user needs at least 2 events to have a transition.
        max_user_events: number of latest events to keep of each user; None: all. Applied before rare items
            and short users are dropped.
        dedup_latest: keep only a user's latest event with each item.
        from_time, until_time: keep only events at or after `from_time` and before `until_time`, in the
            unit of the stored times.
        max_bad_fraction: maximum share of unusable rows.
        num_shards: number of shards; None: chosen by `default_num_shards`.
        seed: seed of the order of users in the shards.
        overwrite: replace an existing dataset at the output path.
        memory_bytes: memory limit. Does not change the result.
        scratch: folder for temporary files; None: the parent of the output. The unfinished dataset is always
            next to the output.
        item_table: table of further columns of the items, such as titles; None: no further columns.
        item_table_id: column of `item_table` that holds the items' ids.
    """

    min_user_events: int = 2
    min_item_events: int = 1
    max_user_events: int | None = None
    dedup_latest: bool = False
    from_time: int | None = None
    until_time: int | None = None
    max_bad_fraction: float = 0.001
    num_shards: int | None = None
    seed: int = 0
    overwrite: bool = False
    memory_bytes: int = DEFAULT_MEMORY_BYTES
    scratch: Path | None = None
    item_table: Path | None = None
    item_table_id: str | None = None

    def __post_init__(self) -> None:
        if self.min_user_events < 2:
            raise DataError(
                f"--min-user-events is {self.min_user_events}, but must be at least 2; one event has no "
                "transition"
            )
        if self.max_user_events is not None and self.max_user_events < self.min_user_events:
            raise DataError(
                f"--max-user-events is {self.max_user_events}, but must be at least --min-user-events "
                f"{self.min_user_events}"
            )
        if not 0 <= self.max_bad_fraction <= 1:
            raise DataError(f"--max-bad-fraction is {self.max_bad_fraction}, but must be between 0 and 1")
        for name, least in (("min_item_events", 1), ("num_shards", 1), ("seed", 0)):
            value = getattr(self, name)
            if value is not None and value < least:
                flag = {"num_shards": "shards"}.get(name, name.replace("_", "-"))
                raise DataError(f"--{flag} is {value}, but must be at least {least}")
        if self.from_time is not None and self.until_time is not None and self.from_time >= self.until_time:
            raise DataError(
                f"--from {self.from_time} is not before --until {self.until_time}, so no event is kept; "
                "pass a smaller --from or a larger --until"
            )
        if self.memory_bytes < MIN_MEMORY_BYTES:
            raise DataError(
                f"--memory is {self.memory_bytes} bytes, but must be at least {MIN_MEMORY_BYTES >> 20}MiB"
            )

    def selecting(self) -> dict[str, int | bool | None]:
        """Return the options that decide which events are kept and in which order, for the manifest."""
        names = (
            "min_user_events",
            "min_item_events",
            "max_user_events",
            "dedup_latest",
            "from_time",
            "until_time",
            "seed",
        )
        return {name: getattr(self, name) for name in names}


@dataclass(frozen=True)
class WorkPlan:
    """How the work is divided to fit into memory. Does not change the result.

    Attributes:
        num_workers: number of threads.
        block_bytes: bytes of text that a thread parses at a time.
        num_buckets: number of buckets into which users are divided.
    """

    num_workers: int
    block_bytes: int
    num_buckets: int

    @classmethod
    def make(cls, max_events: int, memory_bytes: int, num_workers: int) -> WorkPlan:
        """Return the plan for at most `max_events` events. A bucket takes about half of a thread's memory."""
        per_thread = memory_bytes // num_workers
        block_bytes = min(max(per_thread // 2 // _MEMORY_PER_BLOCK_BYTE, _MIN_BLOCK_BYTES), _MAX_BLOCK_BYTES)
        bucket_events = _SHARE_FOR_SORTING * per_thread / SORT_BYTES_PER_EVENT
        num_buckets = min(max(2 * num_workers, int(max_events / bucket_events) + 1), _MAX_BUCKETS)
        return cls(num_workers, block_bytes, num_buckets)
