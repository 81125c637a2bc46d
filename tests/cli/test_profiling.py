"""`longplay train --profile` prints where the time goes, writes a trace and does not change the losses."""

import gzip
import json
import re
from pathlib import Path

import pytest
from support.commands import longplay
from support.runs import read_metrics, small_dataset

from longplay.distributed.runtime.phases import PHASES
from longplay.launch.cli import main


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return small_dataset(tmp_path_factory.mktemp("profiling"))


def train(data: Path, run: Path, *words: str) -> str:
    own = ["train", "small", "--data", str(data), "--run", str(run), "--train.max_steps", "12"]
    return longplay([*own, *words], run.with_suffix(".log"))


def test_profile_accounts_for_the_whole_step_and_does_not_change_the_losses(
    data: Path, tmp_path: Path
) -> None:
    train(data, tmp_path / "plain")
    printed = train(data, tmp_path / "run", "--profile", "4")
    milliseconds = {
        name: float(value) for name, value in re.findall(r"^ *(\S.*?) +([\d.]+) +[\d.]+%", printed, re.M)
    }
    assert set(PHASES) | {"the rest", "step"} <= set(milliseconds)
    parts = sum(milliseconds[name] for name in (*PHASES, "the rest"))
    assert parts == pytest.approx(milliseconds["step"], abs=0.1)
    trace = json.loads(gzip.decompress((tmp_path / "run/profile/rank-0.json.gz").read_bytes()))
    names = [event.get("name") for event in trace["traceEvents"] if event.get("cat") == "user_annotation"]
    assert names.count("longplay: step") == 4
    assert read_metrics(tmp_path / "run", "train/loss") == read_metrics(tmp_path / "plain", "train/loss")


def test_run_with_too_few_steps_prints_that_nothing_was_profiled(data: Path, tmp_path: Path) -> None:
    printed = train(data, tmp_path / "run", "--profile")
    assert "profile  skipped: needs 25 steps, the run had 12" in printed
    assert not (tmp_path / "run/profile").exists()


def test_zero_profiled_steps_are_refused(
    data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = str(tmp_path / "run")
    assert main(["train", "demo", "--data", str(data), "--run", run, "--profile", "0"]) == 2
    assert "--profile" in capsys.readouterr().err
