"""A fault on one rank ends all ranks in time, the last line names the cause, and the run can be resumed.

`LONGPLAY_SOAK_FAULTS=50 pytest -s tests/cli/test_faults.py -k soak` injects 50 faults of all kinds instead of
2 and takes about half an hour on two cores.
"""

from __future__ import annotations

import functools
import os
import random
import re
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from support.commands import Command, longplay
from support.faults import (
    FAULTS,
    AtStep,
    HangsInBaseline,
    SlowDisk,
    UnmarkedReads,
    kill_self,
    sleep_long,
    stop_self,
)
from support.runs import read_metrics, small_dataset
from support.soak import KINDS, Soak, largest_difference, soak_settings

from longplay.distributed.checkpoints.checkpoint import latest_checkpoint

TIMEOUT_S = 8
SETTINGS = ["--train.checkpoint_every_steps", "5", "--train.max_steps", "40", "--train.log_every_steps", "5"]


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return small_dataset(tmp_path_factory.mktemp("faults"))


def words(data: Path, run: Path) -> list[str]:
    timeout = ["--train.timeout_s", str(TIMEOUT_S)]
    return ["train", "small", "--data", str(data), "--run", str(run), *SETTINGS, *timeout]


LAST_LINES = {
    "killed": r"rank 1 was killed",
    "stopped": r"rank 1 has sent no heartbeat for 8 s",
    "hangs": r"no rank made progress for 8 s: rank 1 hangs while training step 12",
    "raises": r"RuntimeError: injected fault",
    "out of memory": r"error on rank 1: out of memory in step 12 .*lower --data\.rows_per",
    "not finite": r"error on rank \d: loss nan.* at step 12 .*no weight was changed",
    "disk full": r"error on rank 1: .*No space left on device",
}


@pytest.mark.parametrize("fault", FAULTS)
def test_a_fault_on_one_rank_ends_all_ranks_and_the_last_line_names_the_cause(
    tmp_path: Path, data: Path, fault: str
) -> None:
    world_size = 3 if fault == "killed" else 2
    fault_at = AtStep(12, 1, FAULTS[fault])
    command = Command(words(data, tmp_path / "run"), tmp_path / "log", world_size=world_size, fault=fault_at)
    code = command.wait()
    printed = (tmp_path / "log").read_text()
    assert code not in (0, 75), printed
    assert re.search(LAST_LINES[fault], printed.splitlines()[-1]), printed
    checkpoint, problems = latest_checkpoint(tmp_path / "run" / "checkpoints")
    assert checkpoint is not None
    # Step 10 is saved in the background: the fault in step 12 may come before the save ends.
    assert checkpoint.step in (8, 10)
    assert not problems


@pytest.mark.parametrize(
    ("action", "cause"), [(kill_self, "rank 0 was killed"), (stop_self, "rank 0 has sent no answer for 13 s")]
)
def test_losing_rank_0_ends_the_other_ranks(
    tmp_path: Path, data: Path, action: Callable[[], None], cause: str
) -> None:
    command = Command(
        words(data, tmp_path / "run"), tmp_path / "log", world_size=3, fault=AtStep(12, 0, action)
    )
    assert command.wait() not in (0, 75)
    lines = (tmp_path / "log").read_text().splitlines()
    assert any(cause in line for line in lines), lines[-3:]
    assert "rank 0" in lines[-1]


def test_a_single_process_that_hangs_ends_with_its_work_named(tmp_path: Path, data: Path) -> None:
    command = Command(words(data, tmp_path / "run"), tmp_path / "log", fault=AtStep(12, 0, sleep_long))
    assert command.wait() == 1
    last = (tmp_path / "log").read_text().splitlines()[-1]
    assert "no progress for 8 s while training step 12; if it is only slow, raise --train.timeout_s" in last


@pytest.mark.parametrize("background", ["never", "always"])
def test_a_save_that_takes_longer_than_the_timeout_is_no_hang(
    tmp_path: Path, data: Path, background: str
) -> None:
    slow = SlowDisk(rank=1, parts=6, seconds=2)  # longer than a collective may take, too
    run = [*words(data, tmp_path / "run"), "--train.checkpoint_every_steps", "100"]
    run += ["--train.timeout_s", "5", "--train.max_steps", "4", "--train.background_save", background]
    command = Command(run, tmp_path / "log", world_size=2, fault=slow)
    assert command.wait() == 0, (tmp_path / "log").read_text()
    assert (tmp_path / "run" / "checkpoints" / "step-000000004").is_dir()


@pytest.mark.parametrize("loss", ["sampled_softmax", "full_softmax"])
def test_every_read_of_a_tensor_in_distributed_is_marked_as_waiting(
    tmp_path: Path, data: Path, loss: str
) -> None:
    found = tmp_path / "unmarked"
    run = [*words(data, tmp_path / "run"), "--loss.name", loss, "--train.max_steps", "6"]
    assert Command(run, tmp_path / "log", world_size=2, fault=UnmarkedReads(found)).wait() == 0
    assert not found.exists(), "\n".join(sorted(set(found.read_text().splitlines())))


def test_a_rank_that_hangs_at_the_end_of_evaluate_is_named(tmp_path: Path, data: Path) -> None:
    run = [*words(data, tmp_path / "run"), "--train.max_steps", "4"]
    longplay(run, tmp_path / "log")
    evaluate = ["evaluate", str(tmp_path / "run"), "--baseline", "--device", "cpu"]
    command = Command(evaluate, tmp_path / "log", world_size=2, fault=HangsInBaseline(1))
    assert command.wait() == 1
    assert "rank 1 hangs while evaluating" in (tmp_path / "log").read_text().splitlines()[-1]


def test_a_removed_checkpoint_folder_is_named(tmp_path: Path, data: Path) -> None:
    # Moved, not deleted: a save in flight could add files while they are deleted one by one.
    remove = functools.partial(os.rename, tmp_path / "run" / "checkpoints", tmp_path / "elsewhere")
    command = Command(
        words(data, tmp_path / "run"), tmp_path / "log", world_size=2, fault=AtStep(12, 0, remove)
    )
    assert command.wait() != 0
    last = (tmp_path / "log").read_text().splitlines()[-1]
    # A save in flight at that moment misses its own file.
    assert re.search(
        r"checkpoints(: the folder was removed or replaced|/\.writing-\S+: (was removed|No such file))", last
    ), last


def test_a_read_only_run_folder_ends_all_ranks_before_they_train(tmp_path: Path, data: Path) -> None:
    run = tmp_path / "run"
    run.mkdir()
    mounted = subprocess.run(["mount", "-t", "tmpfs", "-o", "ro,size=1M", "tmpfs", str(run)], check=False)
    if mounted.returncode:
        pytest.skip("needs permission to mount a tmpfs")
    try:
        command = Command(words(data, run), tmp_path / "log", world_size=2)
        assert command.wait() != 0
        last = (tmp_path / "log").read_text().splitlines()[-1]
        assert "cannot be written (Read-only file system); give another folder" in last
    finally:
        subprocess.run(["umount", str(run)], check=True)


def test_a_second_training_in_the_same_folder_is_refused(tmp_path: Path, data: Path) -> None:
    first = Command(words(data, tmp_path / "run"), tmp_path / "first", fault=AtStep(8, 0, sleep_long))
    first.signal_when(signal.SIGCONT, lambda: (tmp_path / "run" / "metrics.jsonl").exists())
    second = Command(words(data, tmp_path / "run"), tmp_path / "second")
    assert second.wait() == 2
    assert "another process is training in it" in (tmp_path / "second").read_text()
    first.kill()


def test_resuming_after_a_fault_gives_the_result_of_an_undisturbed_run(tmp_path: Path, data: Path) -> None:
    calm, run = ([*words(data, tmp_path / name), "--train.max_steps", "20"] for name in ("calm", "run"))
    longplay(calm, tmp_path / "calm.log", world_size=2)
    command = Command(run, tmp_path / "log", world_size=2, fault=AtStep(12, 1, kill_self))
    assert command.wait() != 0
    longplay(run, tmp_path / "log", world_size=2)
    for tag in ("train/loss", "eval_full_unseen/ndcg@10"):
        assert read_metrics(tmp_path / "run", tag) == read_metrics(tmp_path / "calm", tag)


@pytest.mark.slow
def test_soak_with_many_faults_and_numbers_of_ranks_does_not_change_the_result(
    tmp_path: Path, data: Path
) -> None:
    num_faults = int(os.environ.get("LONGPLAY_SOAK_FAULTS", "0"))
    kinds = ["second train", "copied to later"]  # no other test has them
    if num_faults:
        kinds = random.Random(1).sample([*KINDS] * -(-num_faults // len(KINDS)), num_faults)
    steps = 12 * len(kinds)
    soak = Soak(["train", "mambarec", *soak_settings(steps)], data, tmp_path, steps=steps, seed=1)
    expected = soak.undisturbed(2)
    found = soak.disturbed(kinds, [2, 3] if num_faults else [2])
    difference = largest_difference(expected, found)
    summary = f"{len(kinds)} faults, {steps} steps, largest difference of any loss or metric {difference:.1e}"
    sys.stdout.write(f"{summary}\n")
    assert difference <= (1e-5 if num_faults else 0.0)  # sums of another number of ranks round differently
    soak.server.close()
