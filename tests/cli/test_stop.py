"""A signal saves before anything else, a second one ends the process, and the same command resumes."""

from __future__ import annotations

import json
import signal
from pathlib import Path

import pytest
from support.commands import Command, longplay
from support.data_server import DataServer
from support.faults import AtStep, SignalInValidation, compute_natively, forget_shards, terminate_self
from support.runs import small_dataset, steps_logged
from support.soak import losses_and_metrics

SETTINGS = ["--train.max_epochs", "2", "--train.checkpoint_every_steps", "3"]
EPOCH, LAST = 8, 15  # steps: the second epoch has one step less


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return small_dataset(tmp_path_factory.mktemp("stop"))


@pytest.fixture(scope="module")
def calm(data: Path, tmp_path_factory: pytest.TempPathFactory) -> dict:
    """Return the losses and metrics of a run that nothing disturbs."""
    folder = tmp_path_factory.mktemp("calm")
    longplay(words(str(data), folder / "run"), folder / "log", world_size=2)
    return losses_and_metrics(folder / "run")


def words(data: str, run: Path) -> list[str]:
    return ["train", "small", "--data", data, "--run", str(run), *SETTINGS]


def progress_of(run: Path, step: int) -> dict:
    return json.loads((run / "checkpoints" / f"step-{step:09d}" / "state.json").read_text())["progress"]


@pytest.mark.parametrize("step", [EPOCH, LAST])
def test_a_signal_at_a_validation_saves_and_leaves_the_validation_to_the_next_start(
    tmp_path: Path, data: Path, calm: dict, step: int
) -> None:
    run, log = tmp_path / "run", tmp_path / "log"
    fault = AtStep(step, 1, terminate_self)
    assert Command(words(str(data), run), log, world_size=2, fault=fault).wait() == 75
    assert progress_of(run, step)["validation_is_pending"]
    assert f"stopped on request at step {step} and saved" in log.read_text()
    assert step not in losses_and_metrics(run).get("eval_full_unseen/ndcg@10", {})
    longplay(words(str(data), run), log, world_size=2)
    assert losses_and_metrics(run) == calm


def test_a_signal_in_a_validation_ends_it_on_all_ranks_and_saves(
    tmp_path: Path, data: Path, calm: dict
) -> None:
    run, log = tmp_path / "run", tmp_path / "log"
    fault = SignalInValidation(1, signal.SIGTERM)
    assert Command(words(str(data), run), log, world_size=2, fault=fault).wait() == 75
    assert progress_of(run, EPOCH)["validation_is_pending"]
    longplay(words(str(data), run), log, world_size=2)
    assert losses_and_metrics(run) == calm


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_the_first_signal_is_answered_and_the_second_one_ends_even_a_native_call(
    tmp_path: Path, data: Path, number: signal.Signals
) -> None:
    run, log = tmp_path / "run", tmp_path / "log"
    command = Command(words(str(data), run), log, fault=AtStep(6, 0, compute_natively))
    command.signal_when(number, lambda: steps_logged(run) >= 5)
    name = "Ctrl-C" if number == signal.SIGINT else "SIGTERM"
    answer = f"longplay: {name}: the run ends its step, saves and stops; a second {name} ends it now"
    command.signal_when(number, lambda: answer in log.read_text())
    assert command.wait() == -number


def test_a_signal_while_the_data_server_is_silent_saves_and_stops(tmp_path: Path, data: Path) -> None:
    run, log = tmp_path / "run", tmp_path / "log"
    server = DataServer(data)
    server.silent_after = 2 * 24 + 12  # every rank reads the 24 shards before training
    few = ["--data.pool_rows", "10", "--data.num_lanes", "4", "--data.prefetch_steps", "1"]
    settings = [*words(server.url, run), "--train.checkpoint_every_steps", "100", *few]
    command = Command(settings, log, world_size=2, fault=forget_shards)
    command.signal_when(signal.SIGTERM, lambda: steps_logged(run) >= 1 and server.is_silent)
    assert command.wait() == 75, log.read_text()
    assert any(run.glob("checkpoints/step-*"))
    server.silent_after = 10**9
    longplay(settings, log, world_size=2)
    longplay([*words(str(data), tmp_path / "calm"), *few], tmp_path / "calm.log", world_size=2)
    assert losses_and_metrics(run) == losses_and_metrics(tmp_path / "calm")
    server.close()


def test_a_signal_before_the_first_batch_has_arrived_stops(tmp_path: Path, data: Path) -> None:
    run, log = tmp_path / "run", tmp_path / "log"
    server = DataServer(data)
    server.silent_after = 0
    command = Command(words(server.url, run), log)
    command.signal_when(signal.SIGTERM, lambda: server.is_silent)
    assert command.wait() == 75, log.read_text()
    server.close()


def test_a_signal_ends_a_command_that_waits_for_the_manifest(tmp_path: Path, data: Path) -> None:
    server = DataServer(data)
    server.faults["manifest.json"] = ["silent"]
    command = Command(words(server.url, tmp_path / "run"), tmp_path / "log")
    command.signal_when(signal.SIGTERM, lambda: server.requests["manifest.json"] > 0)
    assert command.wait() == -signal.SIGTERM
    assert not (tmp_path / "run").exists()
    server.close()


def test_a_data_server_that_is_silent_for_longer_than_the_timeout_ends_the_run(
    tmp_path: Path, data: Path
) -> None:
    server = DataServer(data)
    server.silent_after = 3
    command = Command([*words(server.url, tmp_path / "run"), "--train.timeout_s", "5"], tmp_path / "log")
    assert command.wait() == 1
    last = (tmp_path / "log").read_text().splitlines()[-1]
    assert last.startswith("longplay: error: no progress for 5 s while evaluating, round 1 of ")
    server.close()
