"""The cache of frequent rows: the same table, bit for bit, as without it."""

from pathlib import Path
from typing import Any
from unittest import mock

import pytest
import torch
from support.other_device import DEVICE, OtherDevice
from support.ranks import run_ranks
from support.runs import small_config, small_dataset
from torch import Tensor

from longplay.data_shards.storage.dataset import Dataset
from longplay.data_shards.stream.train_stream import TrainStream
from longplay.distributed.checkpoints.checkpoint import latest_checkpoint, load_checkpoint
from longplay.distributed.checkpoints.writer import CheckpointWriter
from longplay.distributed.runtime.world import World
from longplay.distributed.table import triton_kernels
from longplay.distributed.table.row_cache import RowCache, most_frequent_rows
from longplay.distributed.table.row_optimizers import RowOptimizerConfig, build_row_optimizer
from longplay.distributed.table.row_order import RowOrder
from longplay.launch.evaluation.evaluation import evaluate
from longplay.launch.training.model import Model, build_model
from longplay.launch.training.step_pipeline import StepPipeline
from longplay.launch.training.train_step import train_step

ROWS, WIDTH = 200, 24


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return small_dataset(tmp_path_factory.mktemp("row_cache"))


def build(world: World, data: Path, cached_rows: int, optimizer: str) -> Model:
    config = small_config(
        *("--loss.name", "bce", "--table.placement", "host", "--table.optimizer.name", optimizer),
        *("--table.cached_rows", str(cached_rows)),
    )
    return build_model(config, Dataset.open(data), world)


def steps(model: Model, data: Path, count: int) -> list[Any]:
    """Return the losses of `count` steps, and the metrics after them."""
    dataset, world = Dataset.open(data), model.world
    stream = TrainStream(dataset, model.config.data, rank=world.rank, world_size=world.world_size)
    pipeline = StepPipeline(model, iter(stream))
    losses = [train_step(model, pipeline.take(), lr=0.01, pipeline=pipeline).loss for _ in range(count)]
    model.engine.train(False)
    return [losses, evaluate(model.engine, model.table, dataset, model.config, "validation").flat()]


def same(value: Any) -> Any:
    """Return what can be compared for bitwise equality."""
    return {name: rows.tolist() for name, rows in value.items()}


def train_and_save(world: World, data: Path, cached_rows: int, optimizer: str, root: Path | None) -> Any:
    model = build(world, data, cached_rows, optimizer)
    found = [*steps(model, data, 4), *steps(model, data, 3), same(model.table.state())]
    if root is not None:
        CheckpointWriter(root, world, background="never").save(model.engine, model.table, step=7, extra={})
    return found


@pytest.mark.parametrize(("world_size", "optimizer"), [(1, "adagrad"), (2, "adam")])
def test_training_and_ranking_are_bitwise_as_without_a_cache(
    data: Path, world_size: int, optimizer: str
) -> None:
    plain, some, every = (
        run_ranks(train_and_save, world_size, data, count, optimizer, None) for count in (0, 40, 10**6)
    )
    assert plain == some == every


def resume(world: World, data: Path, cached_rows: int, root: Path) -> Any:
    model = build(world, data, cached_rows, "adam")
    checkpoint, _ = latest_checkpoint(root)
    assert checkpoint is not None
    load_checkpoint(checkpoint, model.engine, model.table)
    return [*steps(model, data, 3), same(model.table.state())]


def test_a_checkpoint_resumes_on_other_ranks_with_another_cache(data: Path, tmp_path: Path) -> None:
    files = []
    for count in (0, 40):
        root = tmp_path / str(count)
        root.mkdir()
        run_ranks(train_and_save, 2, data, count, "adam", root)
        files.append({path.name: path.read_bytes() for path in root.glob("*/table-*")})
    assert len(files[0]) == 2
    assert files[0] == files[1]
    assert run_ranks(resume, 1, data, 0, tmp_path / "40") == run_ranks(resume, 1, data, 25, tmp_path / "40")


@pytest.mark.parametrize(("rank", "world_size"), [(0, 1), (2, 3)])
def test_the_most_frequent_items_of_each_rank_are_cached(rank: int, world_size: int) -> None:
    order, per_rank = RowOrder(300), 300 // world_size
    first = rank * per_rank
    found = most_frequent_rows(order, first, per_rank, 10)
    own = [item for item in range(1, 301) if 0 <= (item - 1) * order.step % 300 - first < per_rank]
    assert sorted(order.items(found + first).tolist()) == own[:10]
    assert most_frequent_rows(order, first, per_rank, 1000).shape == (per_rank,)


def updated(optimizer: Any, cached: bool, device: torch.device) -> list[Tensor]:
    """Return what four steps read, and the weights and state after them, on the CPU."""
    config, generator = RowOptimizerConfig(name=optimizer), torch.Generator().manual_seed(1)
    weight = torch.randn(ROWS, WIDTH, generator=generator)
    whole = build_row_optimizer(config, weight)
    cache = RowCache(config, weight, whole, torch.tensor([7, 199, 0, *range(50, 90)]), device)
    found = []
    for step in range(1, 5):
        rows = torch.randperm(ROWS, generator=generator)[:77].sort().values.to(device)
        grads = torch.randn(77, WIDTH, generator=generator).to(device)
        if cached:
            found.append(cache.take_rows(rows).cpu())
            cache.update(rows, grads, lr=0.01, step=step)
        else:
            found.append(weight[rows])
            whole.step(weight, rows, grads, lr=0.01, step=step)
    cache.write_back()
    return [*found, weight, *whole.state.values()]


@pytest.mark.parametrize("optimizer", ["adam", "adagrad"])
def test_a_cache_reads_and_updates_the_rows_of_the_shard(optimizer: str) -> None:
    cpu = torch.device("cpu")
    for ours, theirs in zip(updated(optimizer, True, cpu), updated(optimizer, False, cpu), strict=True):
        assert torch.equal(ours, theirs)


@pytest.mark.kernels("cpu")
@pytest.mark.parametrize("optimizer", ["adam", "adagrad"])
def test_kernels_use_rows_of_both_devices_without_a_wait(optimizer: str) -> None:
    reads_host_rows = mock.patch(
        "longplay.distributed.table.host_memory.kernels_can_access", return_value=True
    )
    updates_host_rows = mock.patch(
        "longplay.distributed.table.row_optimizers.kernels_can_access", return_value=True
    )
    triton_kernels.works.cache_clear()
    with reads_host_rows, updates_host_rows, OtherDevice() as other:
        ours = updated(optimizer, True, DEVICE)
    waits = {place.split("row_cache.")[1] for place in other.waits if "row_cache." in place}
    assert waits == {"RowCache.__init__", "RowCache.load", "RowCache.write_back"}
    for mine, theirs in zip(ours, updated(optimizer, False, torch.device("cpu")), strict=True):
        assert torch.equal(mine, theirs)


@pytest.mark.kernels("cpu")
@pytest.mark.parametrize("optimizer", ["adam", "adagrad"])
def test_without_kernels_on_host_memory_each_device_updates_its_rows(optimizer: str) -> None:
    with OtherDevice():
        ours = updated(optimizer, True, DEVICE)
    for mine, theirs in zip(ours, updated(optimizer, False, torch.device("cpu")), strict=True):
        torch.testing.assert_close(mine, theirs, rtol=1e-5, atol=1e-6)
