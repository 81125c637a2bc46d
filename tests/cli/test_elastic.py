"""A run goes on at any other number of ranks as if it had always had them."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
from support.commands import longplay
from support.runs import read_metrics, small_dataset

FIRST, STEPS = 13, 63  # mid-epoch: an epoch has 8 steps
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
    """Undisturbed and half-done runs, each made once."""

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

    def whole(self, mode: str) -> Path:
        """On one rank from the first step to the last."""
        run = self.folder / f"{mode} whole"
        return run if run.exists() else self.train(run, mode, 1, STEPS)

    def begun(self, mode: str, world_size: int) -> Path:
        """On some ranks until the middle of an epoch."""
        run = self.folder / f"{mode} begun {world_size}"
        return run if run.exists() else self.train(run, mode, world_size, FIRST)


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Runs:
    return Runs(tmp_path_factory.mktemp("elastic"))


@pytest.mark.parametrize(("before", "after", "mode"), PAIRS)
def test_fifty_steps_on_other_ranks_give_the_losses_of_one(
    runs: Runs, before: int, after: int, mode: str
) -> None:
    run = runs.folder / f"{mode} {before} to {after}"
    shutil.copytree(runs.begun(mode, before), run)
    runs.train(run, mode, after, STEPS)
    expected, found = read_metrics(runs.whole(mode), "train/loss"), read_metrics(run, "train/loss")
    assert sorted(found) == list(range(1, STEPS + 1))
    assert found == pytest.approx(expected, abs=1e-5)
    metrics = (read_metrics(each, "eval_full_unseen/mrr") for each in (runs.whole(mode), run))
    expected, found = next(metrics), next(metrics)
    del found[FIRST]  # the first part ended with a validation of its own
    assert found == pytest.approx(expected, abs=1e-4)
