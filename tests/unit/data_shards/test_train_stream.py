"""The training stream has exact contents, is reproducible, resumes at any step and cleans up its threads."""

from __future__ import annotations

import itertools
import subprocess
import sys
import threading
from collections import Counter
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from support.datasets import log_normal_lengths, make_dataset, real_data
from support.sources import open_source

from longplay.data_shards.errors import DataError
from longplay.data_shards.preparation.options import PrepareOptions
from longplay.data_shards.preparation.pipeline import prepare_dataset
from longplay.data_shards.storage.dataset import Dataset
from longplay.data_shards.stream.config import SplitConfig, StreamConfig
from longplay.data_shards.stream.epoch_order import Pool
from longplay.data_shards.stream.splits import split_bounds
from longplay.data_shards.stream.train_stream import Batch, TrainStream

SPLITS = [SplitConfig(), SplitConfig(kind="temporal")]
CONFIG = StreamConfig(context_length=16, rows_per_step=36, num_lanes=12, pool_rows=10, seed=3)


@pytest.fixture(scope="module")
def dataset(tmp_path_factory: pytest.TempPathFactory) -> Dataset:
    """Return 400 users in 36 shards, so that each lane has several pools."""
    return make_dataset(tmp_path_factory.mktemp("data") / "set", log_normal_lengths(400), num_shards=36)


def epoch_batches(stream: TrainStream, epoch: int = 0) -> list[Batch]:
    stream.load_state_dict({"epoch": epoch, "step": 0})
    return list(itertools.islice(iter(stream), stream.steps_per_epoch(epoch)))


def ranks(dataset: Dataset, config: StreamConfig, world_size: int) -> list[TrainStream]:
    return [TrainStream(dataset, config, rank=rank, world_size=world_size) for rank in range(world_size)]


def transitions(batch: Batch) -> Counter[tuple[int, int]]:
    """Count each trained (item, next item)."""
    used = batch.targets > 0
    return Counter(zip(batch.item_ids[used].tolist(), batch.targets[used].tolist(), strict=True))


def expected_transitions(dataset: Dataset, split: SplitConfig, last: int | None = None) -> Counter:
    """Count the transitions between each user's training events, or only the latest `last` of each user."""
    counts: Counter[tuple[int, int]] = Counter()
    for user, num_train in enumerate(split_bounds(dataset, split).num_train):
        items = dataset.sequence(user)[0][:num_train].tolist()
        pairs = list(itertools.pairwise(items))
        counts.update(pairs if last is None else pairs[-last:])
    return counts


def assert_same(left: Batch, right: Batch) -> None:
    assert (left.epoch, left.step) == (right.epoch, right.step)
    for name in ("item_ids", "targets", "seq_idx", "row_lanes", "row_numbers"):
        assert torch.equal(getattr(left, name), getattr(right, name)), name


@pytest.mark.parametrize("split", SPLITS, ids=lambda split: split.kind)
@pytest.mark.parametrize("world_size", [1, 2, 4])
def test_every_transition_is_trained_on_once_per_epoch(
    dataset: Dataset, world_size: int, split: SplitConfig
) -> None:
    config = StreamConfig(context_length=16, rows_per_step=36, pool_rows=10, split=split)
    expected = expected_transitions(dataset, split)
    for epoch in (0, 1):
        read = Counter()
        for stream in ranks(dataset, config, world_size):
            for batch in epoch_batches(stream, epoch):
                read += transitions(batch)
        assert read == expected
        assert TrainStream(dataset, config).order(epoch).num_targets == expected.total()


def test_mode_last_trains_on_the_latest_transitions_of_every_user(dataset: Dataset) -> None:
    config = StreamConfig(context_length=16, rows_per_step=36, pool_rows=10, mode="last")
    read = sum((transitions(batch) for batch in epoch_batches(TrainStream(dataset, config))), Counter())
    assert read == expected_transitions(dataset, config.split, last=16)


@pytest.mark.parametrize("world_size", [2, 3, 4, 5, 12])
def test_global_batches_are_the_same_at_every_world_size(dataset: Dataset, world_size: int) -> None:
    whole = epoch_batches(TrainStream(dataset, CONFIG), 1)
    parts = [epoch_batches(stream, 1) for stream in ranks(dataset, CONFIG, world_size)]
    assert all(len(part) == len(whole) for part in parts)
    for expected, *shares in zip(whole, *parts, strict=True):
        names = ("item_ids", "targets", "seq_idx", "row_lanes", "row_numbers")
        joined: dict[str, Any] = {
            name: torch.cat([getattr(share, name) for share in shares]) for name in names
        }
        assert_same(Batch(expected.epoch, expected.step, **joined), expected)


def test_lane_and_row_number_identify_a_row(dataset: Dataset) -> None:
    for batch in epoch_batches(TrainStream(dataset, CONFIG)):
        names = list(zip(batch.row_lanes.tolist(), batch.row_numbers.tolist(), strict=True))
        assert names == sorted(set(names))
        assert all(number < CONFIG.rows_per_step // CONFIG.num_lanes for _, number in names)


def test_resume_from_any_step_equals_the_uninterrupted_run(dataset: Dataset) -> None:
    stream = TrainStream(dataset, CONFIG, rank=1, world_size=3)
    num_steps = stream.steps_per_epoch(0) + 3
    whole, states = [], [stream.state_dict()]
    for batch in itertools.islice(iter(stream), num_steps):
        whole.append(batch)
        states.append(stream.state_dict())
    assert states[-1] == {"epoch": 1, "step": 3}
    for number in range(num_steps):
        resumed = TrainStream(dataset, CONFIG, rank=1, world_size=3)
        resumed.load_state_dict(states[number])
        assert_same(next(iter(resumed)), whole[number])


@pytest.mark.parametrize("reader_threads", [0, 1, 2, 4, 50])
@pytest.mark.parametrize("prefetch_steps", [0, 3])
def test_batches_do_not_depend_on_reader_threads_and_prefetching(
    dataset: Dataset, reader_threads: int, prefetch_steps: int
) -> None:
    threads = replace(CONFIG, reader_threads=reader_threads, prefetch_steps=prefetch_steps)
    alone = TrainStream(dataset, replace(CONFIG, prefetch_steps=0), rank=1, world_size=2)
    shared = TrainStream(dataset, threads, rank=1, world_size=2)
    for stream in (alone, shared):
        stream.load_state_dict({"epoch": 0, "step": alone.steps_per_epoch(0) - 3})
    for expected, found in itertools.islice(zip(alone, shared, strict=False), 8):
        assert_same(found, expected)
        assert shared.state_dict() == alone.state_dict()
    assert alone.state_dict()["epoch"] == 1


@pytest.mark.parametrize("reader_threads", [0, 1, 2, 4])
def test_a_damaged_shard_raises_from_any_thread(tmp_path: Path, reader_threads: int) -> None:
    make_dataset(tmp_path / "set", log_normal_lengths(60))
    path = tmp_path / "set" / "shard-000003.tar"
    path.write_bytes(path.read_bytes()[:-1] + b"x")
    config = StreamConfig(context_length=16, rows_per_step=120, reader_threads=reader_threads)
    with pytest.raises(DataError, match=r"shard-000003\.tar: shard is damaged"):
        next(iter(TrainStream(Dataset.open(tmp_path / "set"), config)))
    assert reading_threads() == []
    skipping = Dataset.open(tmp_path / "set", on_bad_shard="skip")
    with pytest.warns(UserWarning, match=r"shard-000003\.tar: shard is damaged"):
        next(iter(TrainStream(skipping, config)))
    assert list(skipping.store.skipped) == [3]


def reading_threads() -> list[str]:
    """Return the names of the stream's running threads."""
    return [thread.name for thread in threading.enumerate() if thread.name.startswith("longplay-")]


@pytest.mark.parametrize("reader_threads", [1, 4])
def test_a_dropped_stream_leaves_no_thread(dataset: Dataset, reader_threads: int) -> None:
    iterator = iter(TrainStream(dataset, replace(CONFIG, reader_threads=reader_threads)))
    next(iterator)
    assert reading_threads()
    del iterator
    assert reading_threads() == []


def test_a_process_exits_with_an_open_stream(dataset: Dataset) -> None:
    code = """
import sys
from longplay.data_shards.storage.dataset import Dataset
from longplay.data_shards.stream.config import StreamConfig
from longplay.data_shards.stream.train_stream import TrainStream
config = StreamConfig(context_length=16, rows_per_step=36, reader_threads=4)
sys.batches = iter(TrainStream(Dataset.open(sys.argv[1]), config))
next(sys.batches)
"""
    command = [sys.executable, "-c", code, str(dataset.path)]
    ended = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    assert (ended.returncode, ended.stderr) == (0, "")


def test_cuts_and_order_differ_between_epochs_and_seeds(dataset: Dataset) -> None:
    stream = TrainStream(dataset, CONFIG)
    other_seed = TrainStream(dataset, StreamConfig(context_length=16, rows_per_step=36, pool_rows=10, seed=4))
    first = epoch_batches(stream, 0)[0]
    for other in (epoch_batches(stream, 1)[0], epoch_batches(other_seed, 0)[0]):
        assert not torch.equal(first.item_ids, other.item_ids)
    windows = [
        {
            (user, length)
            for lane in stream.order(epoch).lanes
            for pool in lane
            for user, length in segments(pool)
        }
        for epoch in (0, 1)
    ]
    assert windows[0] != windows[1]


def segments(pool: Pool) -> list[tuple[int, int]]:
    return list(zip(pool.rows.users.tolist(), pool.rows.lengths.tolist(), strict=True))


def test_segments_are_runs_of_one_user_and_targets_are_the_next_events(dataset: Dataset) -> None:
    stream = TrainStream(dataset, CONFIG)
    runs = {
        tuple(items[i : i + n + 1])
        for user, num_train in enumerate(split_bounds(dataset, CONFIG.split).num_train)
        for items in [dataset.sequence(user)[0][:num_train].tolist()]
        for n in range(1, CONFIG.context_length + 1)
        for i in range(len(items) - n)
    }
    for batch in epoch_batches(stream)[:5]:
        for items, targets, numbers in zip(batch.item_ids, batch.targets, batch.seq_idx, strict=True):
            assert torch.equal(items == 0, targets == 0)
            for number in numbers[items > 0].unique():
                inputs, after = items[numbers == number].tolist(), targets[numbers == number].tolist()
                assert inputs[1:] == after[:-1]
                assert (*inputs, after[-1]) in runs


def test_ranks_whose_lanes_have_ended_get_empty_batches(tmp_path: Path) -> None:
    lengths = np.array([400, 3, 3, 3])
    dataset = make_dataset(tmp_path / "set", lengths, num_shards=4)
    config = StreamConfig(context_length=8, rows_per_step=4, num_lanes=4)
    parts = [epoch_batches(stream) for stream in ranks(dataset, config, 4)]
    assert len({len(part) for part in parts}) == 1
    shapes = {tuple(part[-1].item_ids.shape) for part in parts}
    assert shapes == {(0, 8), (1, 8)}


def test_num_lanes_is_lowered_with_a_warning_if_there_are_fewer_shards(tmp_path: Path) -> None:
    dataset = make_dataset(tmp_path / "set", np.full(7, 9))
    with pytest.warns(UserWarning, match="num_lanes 12 is lowered to 6: the dataset has 7 shards"):
        stream = TrainStream(dataset, StreamConfig(context_length=4, rows_per_step=24))
    assert sum((transitions(batch) for batch in epoch_batches(stream)), Counter()).total() == 7 * 6


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"context_length": 0}, r"context_length\s+.* greater than or equal to 1"),
        ({"rows_per_step": 20}, "rows_per_step=20: .* multiple of num_lanes = 12; nearest valid: 12 or 24"),
        ({"mode": "all"}, r"mode\s+.* 'windows' or 'last'"),
        ({"seed": -1}, r"seed\s+.* greater than or equal to 0"),
    ],
)
def test_a_bad_setting_is_named_with_its_constraint(settings: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        StreamConfig(**settings)


def test_more_ranks_than_lanes_is_an_error(dataset: Dataset) -> None:
    with pytest.raises(DataError, match="13 ranks for 12 lanes"):
        TrainStream(dataset, CONFIG, rank=0, world_size=13)


def test_a_position_beyond_the_epoch_is_an_error(dataset: Dataset) -> None:
    stream = TrainStream(dataset, CONFIG)
    with pytest.raises(DataError, match="epoch 0, step 99999 does not exist"):
        stream.load_state_dict({"epoch": 0, "step": 99999})


def test_padding_of_ml1m_is_below_five_percent(tmp_path: Path) -> None:
    source = open_source("parquet", real_data("ml-1m.parquet"))
    prepare_dataset(source, tmp_path / "ml1m", PrepareOptions())
    dataset = Dataset.open(tmp_path / "ml1m")
    assert (dataset.num_users, dataset.num_events) == (6040, 1_000_209)
    for context_length in (250, 1000, 5000):
        plan = TrainStream(dataset, StreamConfig(context_length=context_length)).order(0)
        assert plan.num_targets == 1_000_209 - 3 * 6040
        assert plan.padding_fraction < 0.05
