"""The evaluation stream matches a naive split in plain Python."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from support.datasets import log_normal_lengths, make_dataset

from longplay.data_shards.errors import DataError
from longplay.data_shards.storage.dataset import Dataset
from longplay.data_shards.stream.config import SplitConfig
from longplay.data_shards.stream.eval_stream import EvalBatch, EvalConfig, EvalStream
from longplay.data_shards.stream.splits import Part, cutoffs

SPLITS = [SplitConfig(), SplitConfig(kind="temporal")]
PARTS: list[Part] = ["validation", "test"]


@pytest.fixture(scope="module")
def dataset(tmp_path_factory: pytest.TempPathFactory) -> Dataset:
    return make_dataset(tmp_path_factory.mktemp("data") / "set", log_normal_lengths(300))


def queries(batch: EvalBatch) -> dict[int, tuple[list[int], int, list[int]]]:
    """Return user -> (items of the segment, target, seen items)."""
    found = {}
    for query, user in enumerate(batch.users.tolist()):
        row, slot = int(batch.query_rows[query]), int(batch.query_slots[query])
        numbers = batch.seq_idx[row]
        segment = batch.item_ids[row][numbers == numbers[slot]].tolist()
        assert slot == int((numbers == numbers[slot]).nonzero().max()), "the query is the segment's last slot"
        seen = batch.seen_items[batch.seen_ptr[query] : batch.seen_ptr[query + 1]].tolist()
        assert user not in found
        found[user] = (segment, int(batch.targets[query]), seen)
    return found


def all_queries(dataset: Dataset, config: EvalConfig, part: Part, world_size: int = 1) -> dict:
    streams = [
        EvalStream(dataset, config, part, rank=rank, world_size=world_size) for rank in range(world_size)
    ]
    batches = [(rank, batch) for rank, stream in enumerate(streams) for batch in stream]
    assert sorted(batch.number for _, batch in batches) == list(range(streams[0].num_batches))
    assert all(batch.number % world_size == rank for rank, batch in batches)
    assert streams[0].num_rounds == max(sum(1 for r, _ in batches if r == rank) for rank in range(world_size))
    found: dict = {}
    for _, batch in batches:
        one = queries(batch)
        assert not found.keys() & one.keys()
        found |= one
    assert len(found) == streams[0].num_users
    return found


def naive_queries(dataset: Dataset, split: SplitConfig, part: Part, context_length: int) -> dict:
    expected = {}
    val_begin, test_begin = cutoffs(dataset, split)
    for user in range(dataset.num_users):
        items, times = (values.tolist() for values in dataset.sequence(user))
        if split.kind == "leave_one_out":
            at = len(items) - (1 if part == "test" else 2) if len(items) >= 3 else -1
        elif part == "test":
            at = next((i for i, time in enumerate(times) if time >= test_begin), -1)
        else:
            at = next((i for i, time in enumerate(times) if val_begin <= time < test_begin), -1)
        if at >= 1:
            history = items[:at]
            expected[user] = (history[-context_length:], items[at], sorted(set(history) - {items[at]}))
    return expected


@pytest.mark.parametrize("part", PARTS)
@pytest.mark.parametrize("split", SPLITS, ids=lambda split: split.kind)
def test_queries_match_a_naive_split(dataset: Dataset, split: SplitConfig, part: Part) -> None:
    config = EvalConfig(context_length=16, rows_per_batch=5, split=split)
    assert all_queries(dataset, config, part) == naive_queries(dataset, split, part, 16)


@pytest.mark.parametrize("world_size", [2, 3, 5])
def test_queries_are_the_same_at_every_world_size(dataset: Dataset, world_size: int) -> None:
    config = EvalConfig(context_length=16, rows_per_batch=5)
    assert all_queries(dataset, config, "test", world_size) == all_queries(dataset, config, "test")


def test_temporal_histories_end_before_the_cutoff(dataset: Dataset) -> None:
    split = SplitConfig(kind="temporal")
    _, test_begin = cutoffs(dataset, split)
    found = all_queries(dataset, EvalConfig(context_length=10_000, split=split), "test")
    for user, (history, target, _) in found.items():
        items, times = dataset.sequence(user)
        assert history == items[times < test_begin].tolist()
        assert target == items[times >= test_begin][0]


def test_a_sample_of_users_is_the_same_at_every_world_size(dataset: Dataset) -> None:
    config = EvalConfig(context_length=16, rows_per_batch=5, max_users=40, seed=5)
    sample = all_queries(dataset, config, "validation")
    assert len(sample) == 40
    assert all_queries(dataset, config, "validation", 3) == sample
    other = all_queries(dataset, EvalConfig(context_length=16, max_users=40, seed=6), "validation")
    assert other.keys() != sample.keys()


def test_a_stream_can_be_iterated_twice(dataset: Dataset) -> None:
    stream = EvalStream(dataset, EvalConfig(context_length=16), "test")
    assert [batch.number for batch in stream] == [batch.number for batch in stream]


def test_no_user_to_evaluate_is_an_error(tmp_path: Path) -> None:
    dataset = make_dataset(tmp_path / "set", np.full(5, 2))
    with pytest.raises(DataError, match="leaves no user for test"):
        EvalStream(dataset, EvalConfig(), "test")
