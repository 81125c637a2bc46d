"""The streams deliver features and times with exactly the events that they deliver the items of."""

from __future__ import annotations

import itertools
import warnings
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np
import pytest
import torch
from support.datasets import log_normal_lengths
from support.feature_sets import random_dataset, write_dataset

from longplay.data_shards.storage import shard_store
from longplay.data_shards.storage.dataset import Dataset
from longplay.data_shards.stream import fill_rows
from longplay.data_shards.stream.columns import EventColumns
from longplay.data_shards.stream.config import SplitConfig, StreamConfig
from longplay.data_shards.stream.eval_stream import EvalBatch, EvalConfig, EvalStream
from longplay.data_shards.stream.train_stream import Batch, TrainStream

CONFIG = StreamConfig(context_length=16, rows_per_step=24, num_lanes=4, pool_rows=10, seed=3)


def all_columns(dataset: Dataset) -> EventColumns:
    return EventColumns(features=dataset.manifest.features, times=True)


def epoch_batches(dataset: Dataset, config: StreamConfig = CONFIG, **options: Any) -> list[Batch]:
    stream = TrainStream(dataset, config, columns=all_columns(dataset), **options)
    return list(itertools.islice(iter(stream), stream.steps_per_epoch(0)))


@pytest.fixture(scope="module")
def dataset(tmp_path_factory: pytest.TempPathFactory) -> Dataset:
    """Return a dataset in which an event's item determines its time and its features."""
    lengths = log_normal_lengths(200)
    items = np.random.default_rng(0).permutation(lengths.sum())
    ends = np.cumsum(lengths)
    for begin, end in zip(ends - lengths, ends, strict=True):
        items[begin:end].sort()
    return write_dataset(
        tmp_path_factory.mktemp("columns") / "set",
        lengths,
        items,
        10_000 + items * 7,
        categorical={"genre": items % 5},
        floats={"price": np.where(items % 3, items / 8, np.nan)},
        num_shards=8,
    )


def assert_columns_match(dataset: Dataset, batch: Batch | EvalBatch) -> None:
    """Assert that times and features are those of the items, and 0 at padding."""
    used = batch.item_ids > 0
    items = dataset.items.originals(batch.item_ids[used].numpy())
    genres = dataset.feature_values("genre")["value"].to_numpy()
    assert batch.times is not None
    assert np.array_equal(batch.times[used], 10_000 + items * 7)
    assert np.array_equal(genres[batch.features["genre"][used] - 1], items % 5)
    price = np.where(items % 3, items / 8, np.nan).astype(np.float32)
    assert np.array_equal(batch.features["price"][used], price, equal_nan=True)
    for values in (batch.times, *batch.features.values()):
        assert not values[~used].any()
    assert (batch.times.dtype, batch.features["genre"].dtype) == (torch.int64, torch.int32)


@pytest.mark.parametrize("native", [True, False])
def test_training_rows_have_the_columns_of_their_events(dataset: Dataset, native: bool) -> None:
    with mock.patch.object(fill_rows, "load_native", fill_rows.load_native if native else lambda _: None):
        for batch in epoch_batches(dataset):
            assert_columns_match(dataset, batch)


@pytest.mark.parametrize("kind", ["leave_one_out", "temporal"])
@pytest.mark.parametrize("part", ["validation", "test"])
def test_evaluated_histories_have_the_columns_of_their_events(dataset: Dataset, part: Any, kind: Any) -> None:
    config = EvalConfig(context_length=16, rows_per_batch=5, split=SplitConfig(kind=kind))
    batches = list(EvalStream(dataset, config, part, columns=all_columns(dataset)))
    for batch in batches:
        assert_columns_match(dataset, batch)
    assert sum(len(batch.users) for batch in batches) > 50


def test_items_are_the_same_with_and_without_columns(dataset: Dataset) -> None:
    plain = TrainStream(dataset, CONFIG)
    for alone, batch in zip(plain, epoch_batches(dataset), strict=False):
        assert (alone.times, alone.features) == (None, {})
        for name in ("item_ids", "targets", "seq_idx", "row_lanes", "row_numbers"):
            assert torch.equal(getattr(alone, name), getattr(batch, name)), name


def test_columns_are_the_same_at_every_world_size(dataset: Dataset) -> None:
    whole = epoch_batches(dataset, replace(CONFIG, reader_threads=3))
    parts = [epoch_batches(dataset, rank=rank, world_size=3) for rank in range(3)]
    get: list[Callable[[Batch], torch.Tensor]] = [
        lambda batch: batch.features["price"],
        lambda batch: batch.features["genre"],
        lambda batch: batch.times if batch.times is not None else batch.item_ids,
    ]
    for expected, *shares in zip(whole, *parts, strict=True):
        for one in get:
            joined = torch.cat([one(share) for share in shares])
            assert torch.equal(torch.nan_to_num(joined), torch.nan_to_num(one(expected)))


def test_a_shard_is_read_once_for_the_split_and_the_rows(dataset: Dataset) -> None:
    found = Dataset.open(dataset.path)
    config = replace(CONFIG, split=SplitConfig(kind="temporal"))
    with mock.patch.object(shard_store, "read_shard", wraps=shard_store.read_shard) as read:
        epoch_batches(found, config)
        list(EvalStream(found, EvalConfig(split=config.split), "test", columns=all_columns(found)))
        epoch_batches(found, config)
    assert read.call_count <= 2 * found.num_shards  # once for the times, once with the features


def test_a_skipped_shard_has_no_columns(tmp_path: Path) -> None:
    random_dataset(tmp_path / "set", log_normal_lengths(60))
    (tmp_path / "set" / "shard-000001.tar").unlink()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        found = Dataset.open(tmp_path / "set", on_bad_shard="skip")
    for batch in epoch_batches(found):
        used = batch.item_ids > 0
        assert batch.features["hour"][used].all()
        assert not batch.features["hour"][~used].any()


def test_an_event_after_the_history_changes_no_query(tmp_path: Path) -> None:
    """The time and the features of the target are not delivered."""
    rng, position = np.random.default_rng(0), np.arange(240) % 8
    items, hours, prices = rng.integers(0, 40, 240), rng.integers(0, 24, 240), rng.normal(size=240)
    found = []
    for number, (later, hour, dearer) in enumerate([(0, 0, 0.0), (90_000, 3, 17.0)]):
        is_target = position == 7
        dataset = write_dataset(
            tmp_path / str(number),
            np.full(30, 8),
            items,
            position * 1000 + is_target * later,
            categorical={"hour": (hours + is_target * hour) % 24},
            floats={"price": prices + is_target * dearer},
        )
        (batch,) = EvalStream(dataset, EvalConfig(context_length=9), "test", columns=all_columns(dataset))
        assert batch.times is not None
        hour_of_code = np.array([-1, *dataset.feature_values("hour")["value"]])
        found.append(
            (batch.item_ids, batch.times, batch.features["price"], hour_of_code[batch.features["hour"]])
        )
    assert all(np.array_equal(one, other) for one, other in zip(*found, strict=True))
