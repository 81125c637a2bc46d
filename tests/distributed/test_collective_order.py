"""All ranks launch the same collectives in the same order, from one thread and on one process group."""

import threading
from pathlib import Path
from typing import Any
from unittest import mock

import pytest
import torch
from support.ranks import run_ranks
from support.runs import small_config, small_dataset
from torch.utils._python_dispatch import TorchDispatchMode

from longplay.data_shards.storage.locations import parse_location
from longplay.distributed.runtime.world import World
from longplay.launch.training.train import train

Launch = tuple[str, str]  # thread, collective


class _Recorder(TorchDispatchMode):
    """Record the collectives of a thread, which all pass the dispatcher."""

    def __init__(self, launches: list[Launch], thread: str) -> None:
        super().__init__()
        self._launches, self._thread = launches, thread

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        if func.namespace == "c10d":
            self._launches.append((self._thread, func._opname))
        return func(*args, **(kwargs or {}))


def record(world: World, data: Path, run: Path, overrides: list[str]) -> tuple[list[Launch], list[str], int]:
    """Train, validate and save, then resume; return the launches, the threads, and the groups made."""
    launches: list[Launch] = []
    threads: list[str] = []
    run_thread, new_group = threading.Thread.run, torch.distributed.new_group

    def recorded_thread(self: threading.Thread) -> None:
        threads.append(self.name)
        with _Recorder(launches, self.name):
            run_thread(self)

    with (
        mock.patch.object(threading.Thread, "run", recorded_thread),
        mock.patch.object(torch.distributed, "new_group", mock.Mock(side_effect=new_group)) as groups,
        mock.patch("longplay.launch.training.train.close_world"),  # the second run needs the group
        mock.patch("longplay.launch.training.train.init_world", return_value=world),
        _Recorder(launches, "main"),
    ):
        for steps in ("3", "5"):
            config = small_config(*overrides, "--train.max_steps", steps)
            assert train(config, parse_location(data), run) == 0
    return launches, threads, groups.call_count


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return small_dataset(tmp_path_factory.mktemp("collective_order"))


@pytest.mark.parametrize(
    "overrides",
    [
        ["--loss.name", "bce", "--engine.gradient_accumulation_steps", "2"],
        ["--loss.name", "sampled_softmax", "--loss.negatives", "in_batch", "--engine.zero_stage", "2"],
        ["--loss.name", "full_softmax", "--table.update", "zero_dense", "--engine.zero_stage", "3"],
    ],
    ids=lambda overrides: "-".join(overrides[1::2]),
)
def test_ranks_launch_collectives_in_the_same_order_on_one_group(
    data: Path, tmp_path: Path, overrides: list[str]
) -> None:
    often = ["--train.eval_every_steps", "2", "--train.background_save", "always"]
    (first, threads, groups), (second, _, _) = run_ranks(
        record, 2, data, tmp_path / "run", [*overrides, *often]
    )
    assert first == second
    assert groups == 0
    assert {thread for thread, _ in first} == {"main"}
    assert {"allreduce_", "alltoall_base_", "allgather_", "broadcast_"} <= {name for _, name in first}
    assert len(first) > 100
    assert any("save" in thread for thread in threads)
    assert any("watchdog" in thread for thread in threads)
