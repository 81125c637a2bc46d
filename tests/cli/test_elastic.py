"""A run resumed on another number of ranks keeps its losses and metrics."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
from support.commands import longplay
from support.runs import read_metrics, small_dataset

FIRST, STEPS = 5, 19  # mid-epoch: an epoch has 8 steps
MODES = {
    "row_sparse": ["--engine.zero_stage", "1"],
    "row_sparse, ZeRO-2": ["--engine.zero_stage", "2"],
    "row_sparse, ZeRO-3": ["--engine.zero_stage", "3"],
    "zero_dense": ["--engine.zero_stage", "3", "--table.update", "zero_dense"],
}
PAIRS = [
    (1, 4, "row_sparse"),
    (2, 3, "row_sparse, ZeRO-2"),
    (4, 1, "row_sparse, ZeRO-3"),
    (1, 3, "zero_dense"),
]


class Runs:
    """Complete and interrupted runs, each trained once."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.data = folder, small_dataset(folder)

    def train(self, run: Path, mode: str, world_size: int, steps: int) -> Path:
        words = ["train", "small", "--data", str(self.data), "--run", str(run), *MODES[mode]]
        words += [
            "--engine.gradient_accumulation_steps",
            "2",
            "--train.max_steps",
            str(steps),
            "--train.max_epochs",
            "9",
        ]
        longplay(words, run.with_suffix(".log"), world_size=world_size)
        return run

    def complete(self, mode: str) -> Path:
        """Train all steps on one rank."""
        run = self.folder / f"{mode} complete"
        return run if run.exists() else self.train(run, mode, 1, STEPS)

    def interrupted(self, mode: str, world_size: int) -> Path:
        """Train on `world_size` ranks until the middle of an epoch."""
        run = self.folder / f"{mode} interrupted {world_size}"
        return run if run.exists() else self.train(run, mode, world_size, FIRST)


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Runs:
    return Runs(tmp_path_factory.mktemp("elastic"))


@pytest.mark.parametrize(("before", "after", "mode"), PAIRS)
def test_three_epochs_on_another_number_of_ranks_match_one_rank(
    runs: Runs, before: int, after: int, mode: str
) -> None:
    run = runs.folder / f"{mode} {before} to {after}"
    shutil.copytree(runs.interrupted(mode, before), run)
    runs.train(run, mode, after, STEPS)
    expected, found = read_metrics(runs.complete(mode), "train/loss"), read_metrics(run, "train/loss")
    assert sorted(found) == list(range(1, STEPS + 1))
    assert found == pytest.approx(expected, abs=1e-5)
    metrics = (read_metrics(each, "eval_full_unseen/mrr") for each in (runs.complete(mode), run))
    expected, found = next(metrics), next(metrics)
    del found[FIRST]  # the interrupted run validated its last step
    assert found == pytest.approx(expected, abs=1e-4)


def test_ranks_agree_when_the_time_is_up_and_the_rate_has_decayed_by_then(runs: Runs) -> None:
    run = runs.folder / "minutes"
    bounds = ["--train.max_minutes", "0.05", "--train.max_epochs", "100000", "--train.lr", "0.01"]
    words = ["train", "small", "--data", str(runs.data), "--run", str(run), *bounds]
    log = run.with_suffix(".log")
    longplay(words, log, world_size=2)
    assert "train.max_minutes 0.05 reached" in log.read_text()
    rates = read_metrics(run, "optim/lr")
    assert max(rates.values()) > 0.009
    assert rates[max(rates)] < 0.002
