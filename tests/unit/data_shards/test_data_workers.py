"""Data workers: the same batches, the same errors, and no process left behind."""

from __future__ import annotations

import itertools
import multiprocessing
import os
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from support.datasets import log_normal_lengths, make_dataset
from torch.utils.data import DataLoader

from longplay.data_shards.errors import DataError
from longplay.data_shards.storage.dataset import Dataset
from longplay.data_shards.stream import data_workers
from longplay.data_shards.stream.data_workers import WorkerBatches
from longplay.data_shards.stream.epoch_order import StreamConfig
from longplay.data_shards.stream.rows import Batch
from longplay.data_shards.stream.train_stream import TrainStream

CONFIG = StreamConfig(context_length=16, rows_per_step=36, num_lanes=12, pool_rows=10, seed=3)


@pytest.fixture(scope="module")
def dataset(tmp_path_factory: pytest.TempPathFactory) -> Dataset:
    return make_dataset(tmp_path_factory.mktemp("data") / "set", log_normal_lengths(400), num_shards=36)


def assert_same(left: Batch, right: Batch) -> None:
    assert (left.epoch, left.step) == (right.epoch, right.step)
    for name, tensor in left.tensors().items():
        assert tensor.dtype == right.tensors()[name].dtype
        assert torch.equal(tensor, right.tensors()[name]), name


@pytest.mark.parametrize("workers", [2])
def test_batches_and_positions_are_those_without_workers_from_any_step(
    dataset: Dataset, workers: int
) -> None:
    alone = TrainStream(dataset, CONFIG, rank=1, world_size=2)
    shared = TrainStream(dataset, replace(CONFIG, workers=workers), rank=1, world_size=2)
    start = {"epoch": 0, "step": alone.steps_per_epoch(0) - 3}
    for stream in (alone, shared):
        stream.load_state_dict(start)
    count = 0
    for expected, found in itertools.islice(zip(alone, shared, strict=False), 8):
        assert_same(found, expected)
        assert shared.state_dict() == alone.state_dict()
        count += 1
    assert count == 8
    assert alone.state_dict()["epoch"] == 1
    assert multiprocessing.active_children() == []


def test_there_are_never_more_workers_than_lanes(dataset: Dataset) -> None:
    stream = TrainStream(dataset, replace(CONFIG, workers=50), rank=0, world_size=6)
    assert WorkerBatches(stream._builder, 0, 0).num_workers == 2


def test_a_bad_shard_in_a_worker_is_the_same_error(tmp_path: Path) -> None:
    dataset = make_dataset(tmp_path / "set", log_normal_lengths(60))
    path = tmp_path / "set" / "shard-00003.tar"
    path.write_bytes(path.read_bytes()[:-1] + b"x")
    messages = []
    for workers in (0, 1):
        config = StreamConfig(context_length=16, rows_per_step=120, workers=workers)
        with pytest.raises(DataError) as error:
            next(iter(TrainStream(dataset, config)))
        messages.append(str(error.value))
    assert messages[0] == messages[1]
    assert "shard-00003.tar: shard is damaged" in messages[0]
    skipping = Dataset.open(tmp_path / "set", on_bad_shard="skip")
    with pytest.warns(UserWarning, match=r"shard-00003\.tar: shard is damaged"):
        next(iter(TrainStream(skipping, StreamConfig(context_length=16, rows_per_step=120, workers=1))))
    assert list(skipping.store.skipped) == [3]


def test_a_killed_worker_ends_the_stream_with_an_error_and_ignores_what_ends_a_job(dataset: Dataset) -> None:
    batches = iter(TrainStream(dataset, replace(CONFIG, workers=1)))
    next(batches)
    (worker,) = multiprocessing.active_children()
    assert worker.pid is not None
    for number in (signal.SIGTERM, signal.SIGINT, signal.SIGUSR1):
        os.kill(worker.pid, number)
    for _ in range(10):
        next(batches)
    worker.kill()
    with pytest.raises(DataError, match=r"a data worker ended unexpectedly \(.+\)"):
        for _ in batches:
            pass


def test_training_and_its_workers_share_no_lock_that_a_killed_one_could_keep(
    dataset: Dataset, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each of the loader's locks is taken for good, where it has one, before the worker is killed."""
    started: list[Any] = []

    class Noted(DataLoader):
        def __iter__(self) -> Any:
            started.append(super().__iter__())
            return started[-1]

    monkeypatch.setattr(data_workers, "DataLoader", Noted)
    batches = iter(TrainStream(dataset, replace(CONFIG, workers=1)))
    next(batches)
    incoming = started[0]
    assert not hasattr(incoming._workers_done_event, "_cond"), "an event with a lock"
    for kept in (incoming._worker_result_queue._wlock, incoming._index_queues[0]._rlock):
        kept.acquire(block=False)
    (worker,) = multiprocessing.active_children()
    worker.kill()
    with pytest.raises(DataError, match="a data worker ended unexpectedly"):
        for _ in batches:
            pass


ORPHAN = """
import multiprocessing, os, signal, sys
from longplay.data_shards.storage.dataset import Dataset
from longplay.data_shards.stream.epoch_order import StreamConfig
from longplay.data_shards.stream.train_stream import TrainStream
if __name__ == "__main__":
    config = StreamConfig(context_length=16, rows_per_step=36, workers=1)
    batches = iter(TrainStream(Dataset.open(sys.argv[1]), config))
    next(batches)
    print(*(child.pid for child in multiprocessing.active_children()), flush=True)
    if sys.argv[2] == "killed":
        os.kill(os.getpid(), signal.SIGKILL)
    sys.last_batches = batches  # kept to the end, as the traceback of an uncaught error would
"""


@pytest.mark.parametrize("end", ["killed", "left open"])
def test_no_worker_outlives_its_process(dataset: Dataset, tmp_path: Path, end: str) -> None:
    (tmp_path / "orphan.py").write_text(ORPHAN)
    words = [sys.executable, str(tmp_path / "orphan.py"), str(dataset.path), end]
    found = subprocess.run(words, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, timeout=60, check=False)
    workers = [int(word) for word in found.stdout.split()]
    assert len(workers) == 1
    assert found.returncode == (-signal.SIGKILL if end == "killed" else 0)
    deadline = time.monotonic() + 30
    while alive := [pid for pid in workers if is_running(pid)]:
        assert time.monotonic() < deadline, f"still running: {alive}"
        time.sleep(0.1)


def is_running(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except FileNotFoundError:
        return False
