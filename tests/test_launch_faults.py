"""What goes wrong on one rank ends all in time, with the first cause as the last line, and loses nothing."""

from __future__ import annotations

import functools
import os
import re
import shutil
import signal
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import pytest
from commands import Command, longplay
from runs import read_metrics, small_dataset

from longplay.distributed.checkpoint import latest_checkpoint

TIMEOUT_S = 8
SETTINGS = ["--train.checkpoint_every_steps", "5", "--train.max_steps", "40", "--train.log_every_steps", "5"]


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return small_dataset(tmp_path_factory.mktemp("faults"))


def words(data: Path, run: Path) -> list[str]:
    timeout = ["--train.timeout_s", str(TIMEOUT_S)]
    return ["train", "small", "--data", str(data), "--run", str(run), *SETTINGS, *timeout]


@dataclass(frozen=True)
class AtStep:
    """A fault: `rank` calls `action` when it is about to train `step`."""

    step: int
    rank: int
    action: Callable[[], object]

    def __call__(self, this_rank: int) -> None:
        from longplay.launch import train

        original = train.train_step

        def faulty(*args: object, **settings: object) -> object:
            if settings["step"] == self.step and this_rank == self.rank:
                self.action()
            return original(*args, **settings)  # pyright: ignore[reportArgumentType]

        train.train_step = faulty  # pyright: ignore[reportAttributeAccessIssue]


def kill_self() -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def stop_self() -> None:
    os.kill(os.getpid(), signal.SIGSTOP)


def sleep_long() -> None:
    time.sleep(600)


def raise_error() -> None:
    raise RuntimeError("the tape tore")


def run_out_of_memory() -> None:
    raise MemoryError("Unable to allocate 1.00 TiB")


def write_nothing_more() -> None:
    """The disk is full for everything of at least a block, which tensors are and logs are not."""
    from longplay.distributed import checkpoint_writer

    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    checkpoint_writer.write_tensors = full  # pyright: ignore[reportAttributeAccessIssue]


def spoil_the_loss() -> None:
    from longplay.launch import train_step

    original = train_step.micro_batch_loss

    def spoilt(*args: object) -> object:
        loss, *rest = original(*args)  # pyright: ignore[reportArgumentType]
        return (loss * float("nan"), *rest)

    train_step.micro_batch_loss = spoilt  # pyright: ignore[reportAttributeAccessIssue]


FAULTS = {
    "killed": (kill_self, r"rank 1 ended without a word: it was killed"),
    "stopped": (stop_self, r"rank 1 has not been heard of for 8 s"),
    "hangs": (sleep_long, r"nothing has moved for 8 s: rank 1 hangs while training step 12"),
    "raises": (raise_error, r"RuntimeError: the tape tore"),
    "out of memory": (
        run_out_of_memory,
        r"error on rank 1: out of memory in step 12 .*lower --data\.rows_per",
    ),
    "not finite": (spoil_the_loss, r"error on rank \d: loss nan.* at step 12 .*no weight was changed"),
    "disk full": (write_nothing_more, r"error on rank 1: .*No space left on device"),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_a_fault_on_one_rank_ends_all_and_the_last_line_says_why(
    tmp_path: Path, data: Path, fault: str
) -> None:
    action, last_line = FAULTS[fault]
    command = Command(
        words(data, tmp_path / "run"), tmp_path / "log", world_size=3, fault=AtStep(12, 1, action)
    )
    code = command.wait(timeout_s=90)
    printed = (tmp_path / "log").read_text()
    assert code not in (0, 75), printed
    assert re.search(last_line, printed.splitlines()[-1]), printed
    checkpoint, problems = latest_checkpoint(tmp_path / "run" / "checkpoints")
    assert checkpoint is not None
    assert checkpoint.step == 10
    assert problems == []


def test_rank_0_killed_ends_the_others(tmp_path: Path, data: Path) -> None:
    command = Command(
        words(data, tmp_path / "run"), tmp_path / "log", world_size=3, fault=AtStep(12, 0, kill_self)
    )
    assert command.wait(timeout_s=90) not in (0, 75)
    assert "rank 0 ended without a word" in (tmp_path / "log").read_text().splitlines()[-1]


def test_a_checkpoint_folder_removed_under_us_is_named(tmp_path: Path, data: Path) -> None:
    remove = functools.partial(shutil.rmtree, tmp_path / "run" / "checkpoints")
    command = Command(
        words(data, tmp_path / "run"), tmp_path / "log", world_size=2, fault=AtStep(12, 0, remove)
    )
    assert command.wait(timeout_s=90) == 2
    last = (tmp_path / "log").read_text().splitlines()[-1]
    assert "checkpoints: the folder was removed while the run was going" in last


def test_after_a_fault_the_same_command_ends_as_if_nothing_had_happened(tmp_path: Path, data: Path) -> None:
    longplay(words(data, tmp_path / "calm"), tmp_path / "calm.log", world_size=2)
    command = Command(
        words(data, tmp_path / "run"), tmp_path / "log", world_size=2, fault=AtStep(17, 1, kill_self)
    )
    assert command.wait(timeout_s=90) != 0
    longplay(words(data, tmp_path / "run"), tmp_path / "log", world_size=2)
    for tag in ("train/loss", "eval_full_unseen/ndcg@10"):
        assert read_metrics(tmp_path / "run", tag) == read_metrics(tmp_path / "calm", tag)
