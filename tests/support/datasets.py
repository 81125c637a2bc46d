"""Small datasets for tests, and access to real datasets."""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import polars as pl
import pytest

from longplay.data_shards.preparation.options import PrepareOptions
from longplay.data_shards.preparation.pipeline import prepare_dataset
from longplay.data_shards.readers.sources import Block, ParsedBlock, Source
from longplay.data_shards.storage.dataset import Dataset
from longplay.data_shards.storage.manifest import MANIFEST_NAME, SourceInfo, TimeUnit
from support.json_edits import edit_json

Sequences = dict[int, list[tuple[int, int]]]
LENIENT = PrepareOptions(max_bad_fraction=1)
REPOSITORY = Path(__file__).resolve().parents[2]


def real_data(name: str) -> Path:
    """Return the path of a real dataset, or skip the test if it is not available."""
    folder = os.environ.get("LONGPLAY_TEST_DATA")
    if not folder:
        pytest.skip(f"needs {name}: set LONGPLAY_TEST_DATA to the folder that contains it")
    if not (Path(folder) / name).exists():
        pytest.skip(f"needs {name}: not found in LONGPLAY_TEST_DATA={folder}")
    return Path(folder) / name


class FrameSource:
    """A source of events in memory."""

    def __init__(self, frame: pl.DataFrame, block_rows: int | None = None) -> None:
        self.block_rows = block_rows
        self.frame = frame.select(pl.col("user", "item", "time").cast(pl.Int64))

    def describe(self) -> SourceInfo:
        return {"format": "frame", "paths": [], "options": {}}

    def fingerprint(self) -> list[object]:
        return [str(self.frame.hash_rows().sum())]

    def time_unit(self) -> TimeUnit | None:
        return None

    def features(self) -> tuple[tuple[str, str], ...]:
        return ()

    def summary(self) -> str:
        return "integer ids"

    def max_events(self) -> int:
        return self.frame.height

    def total_weight(self) -> int:
        return self.frame.height

    def blocks(self, block_bytes: int) -> Iterator[Block]:
        size = block_bytes if self.block_rows is None else self.block_rows
        for part in self.frame.iter_slices(size):
            yield FrameBlock(part)


@dataclass(frozen=True)
class FrameBlock:
    """Consecutive rows of a frame."""

    frame: pl.DataFrame
    part: str = "frame"

    @property
    def weight(self) -> int:
        return self.frame.height

    def parse(self) -> ParsedBlock:
        columns = (self.frame[role].to_numpy() for role in ("user", "item", "time"))
        return ParsedBlock(*columns, rows_in=self.frame.height)


def random_events(lengths: np.ndarray, num_items: int = 200, seed: int = 0) -> pl.DataFrame:
    """Return events of users with the given history lengths, at random times."""
    rng = np.random.default_rng(seed)
    user = np.repeat(np.arange(len(lengths)), lengths)
    item = (rng.random(len(user)) ** 2 * num_items).astype(np.int64)
    return pl.DataFrame({"user": user, "item": item, "time": rng.integers(0, 10 * len(user), len(user))})


def log_normal_lengths(num_users: int, seed: int = 0, *, least: int = 2, median: float = 20) -> np.ndarray:
    """Return (num_users,) history lengths with a long tail."""
    draws = np.random.default_rng(seed).lognormal(np.log(median), 1.0, num_users)
    return np.maximum(least, draws.astype(np.int64))


def make_dataset(out: Path, lengths: np.ndarray, *, num_shards: int | None = None, seed: int = 0) -> Dataset:
    """Prepare and open a dataset of random events of users with the given history lengths."""
    options = PrepareOptions(num_shards=num_shards)
    prepare_dataset(FrameSource(random_events(lengths, seed=seed)), out, options)
    return Dataset.open(out)


def sequences(dataset: Dataset) -> Sequences:
    """Return original user id -> [(original item id, time), ...]."""
    found = {}
    for user, original in enumerate(dataset.user_original_ids.tolist()):
        items, times = dataset.sequence(user)
        found[original] = list(zip(dataset.items.originals(items).tolist(), times.tolist(), strict=True))
    return found


def naive_sequences(rows: list[tuple[int, int, int]], min_user_events: int = 2) -> Sequences:
    """Compute `sequences` in plain Python from (user, item, time) rows in source order."""
    found: Sequences = {}
    for user, item, time in sorted(rows, key=lambda row: (row[0], row[2])):
        found.setdefault(user, []).append((item, time))
    return {user: events for user, events in found.items() if len(events) >= min_user_events}


def prepared(source: Source, out: Path, options: PrepareOptions = LENIENT) -> Dataset:
    """Prepare a dataset from `source` and open it."""
    prepare_dataset(source, out, options)
    return Dataset.open(out)


def edit_manifest(folder: Path, **changes: object) -> None:
    """Set fields of the manifest, and its checksum, without a check."""
    edit_json(folder / MANIFEST_NAME, **changes)
