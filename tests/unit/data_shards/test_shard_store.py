"""Skipped shards are neither trained on nor evaluated, and are reported."""

from __future__ import annotations

import itertools
import re
import warnings
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pytest
import torch
from support.datasets import log_normal_lengths, make_dataset

from longplay.data_shards.errors import DataError
from longplay.data_shards.storage.dataset import Dataset
from longplay.data_shards.stream.config import SplitConfig, StreamConfig
from longplay.data_shards.stream.eval_stream import EvalConfig, EvalStream
from longplay.data_shards.stream.splits import split_bounds, train_item_counts
from longplay.data_shards.stream.train_stream import Batch, TrainStream

CONFIG = StreamConfig(context_length=16, rows_per_step=36, pool_rows=10)
BAD = {2: "missing", 5: "truncated", 9: "flipped"}
WARNED = r"shard-0000\d\d\.tar: shard .*; skipped its [\d,]+ events"
Kind = Literal["leave_one_out", "temporal"]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    make_dataset(tmp_path / "set", log_normal_lengths(300))
    return tmp_path / "set"


def damage(folder: Path) -> None:
    for index, how in BAD.items():
        path = folder / f"shard-{index:06d}.tar"
        content = bytearray(path.read_bytes())
        if how == "missing":
            path.unlink()
        elif how == "truncated":
            path.write_bytes(content[:-512])
        else:
            content[700] ^= 1
            path.write_bytes(content)


def epoch(dataset: Dataset, world_size: int = 1) -> list[Batch]:
    parts = []
    for rank in range(world_size):
        stream = TrainStream(dataset, CONFIG, rank=rank, world_size=world_size)
        parts.append(list(itertools.islice(stream, stream.steps_per_epoch(0))))
    return [joined(step) for step in zip(*parts, strict=True)]


def joined(parts: tuple[Batch, ...]) -> Batch:
    """Concatenate the batches of all ranks."""
    names = ("item_ids", "targets", "seq_idx", "row_lanes", "row_numbers")
    tensors: dict[str, Any] = {name: torch.cat([getattr(part, name) for part in parts]) for name in names}
    return Batch(parts[0].epoch, parts[0].step, **tensors)


def bad_users(dataset: Dataset) -> np.ndarray:
    pieces = [np.arange(dataset.shard_ptr[index], dataset.shard_ptr[index + 1]) for index in BAD]
    return np.concatenate(pieces)


@pytest.mark.parametrize("world_size", [1, 3])
def test_skipped_shards_become_padding_and_other_slots_are_unchanged(folder: Path, world_size: int) -> None:
    whole = epoch(Dataset.open(folder, cache_bytes=0))
    intact = Dataset.open(folder)
    lost = sum(int(intact.lengths[user]) - 3 for user in bad_users(intact) if intact.lengths[user] >= 3)
    lost += int(np.sum(intact.lengths[bad_users(intact)] == 2))
    damage(folder)
    with warnings.catch_warnings(record=True) as warned:
        warnings.simplefilter("always")
        dataset = Dataset.open(folder, on_bad_shard="skip")
        assert set(dataset.store.skipped) == {2, 5}, "found by their sizes"
        batches = epoch(dataset, world_size)
        epoch(dataset)
    assert len(warned) == len(BAD), "one warning per shard"
    assert all(re.search(WARNED, str(each.message)) for each in warned)
    assert set(dataset.store.skipped) == set(BAD)
    assert dataset.store.num_skipped_events == dataset.lengths[bad_users(dataset)].sum()
    summary = dataset.skipped_summary()
    assert summary is not None
    assert summary.endswith("%): shard-000002.tar, shard-000005.tar, shard-000009.tar")
    gone = 0
    for before, after in zip(whole, batches, strict=True):
        assert torch.equal(before.seq_idx, after.seq_idx)
        kept = after.targets > 0
        assert torch.equal(before.targets[kept], after.targets[kept])
        assert torch.equal(before.item_ids[kept], after.item_ids[kept])
        assert not after.item_ids[~kept].any()
        gone += int((before.targets > 0).sum() - kept.sum())
    assert gone == lost


@pytest.mark.filterwarnings("ignore:.*skipped its")
@pytest.mark.parametrize("kind", ["leave_one_out", "temporal"])
def test_users_of_skipped_shards_are_neither_evaluated_nor_counted(folder: Path, kind: Kind) -> None:
    split = SplitConfig(kind=kind)
    intact = Dataset.open(folder)
    everyone = {
        user for batch in EvalStream(intact, EvalConfig(split=split), "test") for user in batch.users.tolist()
    }
    num_train = split_bounds(intact, split).num_train
    counts = train_item_counts(intact, split)
    for index in BAD:
        for user in range(intact.shard_ptr[index], intact.shard_ptr[index + 1]):
            np.subtract.at(counts, intact.sequence(user)[0][: num_train[user]], 1)
    damage(folder)
    dataset = Dataset.open(folder, on_bad_shard="skip")
    stream = EvalStream(dataset, EvalConfig(context_length=16, rows_per_batch=1, split=split), "test")
    batches = list(stream)
    assert all(len(batch.users) for batch in batches)
    assert all(int(batch.targets.min()) > 0 for batch in batches)
    found = [user for batch in batches for user in batch.users.tolist()]
    assert sorted(found) == sorted(everyone - set(bad_users(dataset).tolist()))
    assert np.array_equal(train_item_counts(dataset, split), counts)
    if kind == "temporal":
        bounds = split_bounds(dataset, split)
        assert not bounds.num_train[bad_users(dataset)].any()
        assert np.all(bounds.targets["validation"][bad_users(dataset)] == -1)


def test_a_dataset_with_only_bad_shards_is_an_error(folder: Path) -> None:
    for path in folder.glob("shard-*.tar"):
        path.unlink()
    with pytest.warns(UserWarning, match=WARNED), pytest.raises(DataError, match="all 24 shards are bad"):
        Dataset.open(folder, on_bad_shard="skip")
