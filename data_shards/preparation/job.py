"""A `prepare` command: its source, its options, its temporary folders and its plan."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from longplay.data_shards.preparation.options import PrepareOptions, WorkPlan
from longplay.data_shards.preparation.work_folder import WorkFolder
from longplay.data_shards.progress import Progress
from longplay.data_shards.readers.sources import Source

TOTALS, SELECTION = "totals.json", "selection"
"""The files that the first and the third pass write last."""


@dataclass(frozen=True)
class Job:
    """The arguments that all passes share.

    Attributes:
        source: the events.
        work: the temporary folders.
        options: which events are kept.
        plan: how the work is divided.
        progress: called as the work proceeds.
    """

    source: Source
    work: WorkFolder
    options: PrepareOptions
    plan: WorkPlan
    progress: Progress

    @property
    def is_read(self) -> bool:
        """Whether the first pass is complete."""
        return (self.work.path / TOTALS).exists()

    @property
    def is_selected(self) -> bool:
        """Whether the second and the third pass are complete."""
        return (self.work.path / SELECTION).exists()

    @property
    def runs(self) -> Path:
        """Folder of the events as the first pass has partitioned them; created if necessary."""
        return self.work.folder("runs")

    @property
    def buckets(self) -> Path:
        """Folder of the sorted events; created if necessary."""
        return self.work.folder("buckets")

    @property
    def features(self) -> tuple[str, ...]:
        """Names of the event features."""
        return tuple(name for name, _ in self.source.features())

    @property
    def hash_seed(self) -> int:
        """Seed of the hash of strings: the number of seeds with which two strings had the same hash."""
        return sum(1 for _ in self.work.path.glob("seed-*.failed"))
