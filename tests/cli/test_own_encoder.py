"""An encoder, a loss and a recipe in a package outside the repository, used through --import."""

import functools
import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
from support.commands import Command, enter
from support.runs import small_dataset, steps_logged

MODULE = "my_package.my_encoder"
SOURCE = '''
from dataclasses import dataclass

import torch
from torch import nn

from longplay.launch.settings.recipes import recipe
from longplay.models.base.activations import Activations
from longplay.models.base.block import EncoderBlock
from longplay.models.base.registry import ENCODERS, EncoderEntry
from longplay.models.base.segments import select_slots
from longplay.models.losses.base import LOSSES
from longplay.models.losses.bce import BCE


@dataclass(frozen=True, kw_only=True)
class Options:
    rank: int = 4


class LowRankBlock(EncoderBlock):
    """x + up(down(x)), slot by slot."""

    def __init__(self, config, block_index):
        super().__init__(config, block_index)
        rank = config.options_as(Options).rank
        self.down, self.up = nn.Linear(config.d_model, rank), nn.Linear(rank, config.d_model)

    def forward(self, x, layout, dropout_keys, at=None):
        return select_slots(x + self.up(torch.relu(self.down(x))), at)

    @staticmethod
    def activations(config, execution):
        return Activations(narrow=2 * config.options_as(Options).rank)


class MyLoss(BCE):
    pass


ENCODERS.register("low_rank", EncoderEntry(block=LowRankBlock, display_name="LowRank", options_type=Options))
LOSSES.register("my_loss", MyLoss)


@recipe
def mine():
    """The encoder above, small."""
    return {
        "seed": 1,
        "context_length": 40,
        "encoder": {"model": "low_rank", "d_model": 16, "num_blocks": 1},
        "loss": {"name": "my_loss"},
        "data": {"rows_per_step": 24},
        "train": {"device": "cpu", "max_steps": 2, "log_every_steps": 1},
    }
'''


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the package and a dataset."""
    folder = tmp_path_factory.mktemp("own")
    (folder / "my_package").mkdir()
    (folder / "my_package" / "my_encoder.py").write_text(SOURCE)
    small_dataset(folder)
    return folder


def run(folder: Path, *words: object) -> tuple[int, str]:
    """Run `longplay WORDS` in a process that finds the package; return its exit code and its output."""
    output = folder / "output.txt"
    command = Command(list(map(str, words)), output, fault=functools.partial(enter, folder))
    return command.wait(), output.read_text()


def succeed(folder: Path, *words: object) -> str:
    """Run a command that must succeed and return its output."""
    code, output = run(folder, *words)
    assert code == 0, output
    return output


def refused(folder: Path, *words: object) -> str:
    """Run a command that must be refused and return the line that it prints."""
    code, output = run(folder, *words)
    assert code == 2, output
    (line,) = output.splitlines()
    return line


def test_own_encoder_is_trained_evaluated_and_resumed(folder: Path) -> None:
    words = ("train", "mine", "--data", "data", "--run", "run", "--encoder.options.rank", 8)
    own = ("--import", MODULE)
    printed = succeed(folder, *words, *own)
    assert f"longplay evaluate run --split test --import {MODULE}" in printed
    saved = json.loads((folder / "run" / "config.json").read_text())
    assert saved["imports"] == [MODULE]
    assert saved["config"]["encoder"]["options"] == {"rank": 8}
    metrics = json.loads(succeed(folder, "evaluate", "run", *own, "--split", "validation", "--json"))
    assert metrics["step"] == 2
    assert refused(folder, "evaluate", "run").endswith(
        f"run: needs modules that are not imported; add --import {MODULE}"
    )
    assert "encoder.options.rank: 8 -> 4" in refused(folder, *words[:-1], 4, *own)
    succeed(folder, *words, *own, "--train.max_steps", 4)
    assert steps_logged(folder / "run") == 4


def test_a_sweep_imports_the_module_in_its_jobs(folder: Path) -> None:
    words = ("sweep", "--cluster", "debug", "--out", "sweep")
    which = ("--data", "data", "--models", "mine", "--context-lengths", 40)
    assert "recipe 'mine': unknown;" in refused(folder, *words, *which)
    succeed(folder, *words, *which, "--import", MODULE)
    (done,) = (folder / "sweep" / "runs").glob("*/evaluation/test.json")
    assert json.loads(done.read_text())["step"] == 2
    again = ("sweep", "--out", "sweep", "--status")
    assert refused(folder, *again).endswith(
        f"sweep: needs modules that are not imported; add --import {MODULE}"
    )
    assert "1 finished" in succeed(folder, *again, "--import", MODULE)


def test_a_block_without_activations_is_refused_with_what_to_add(folder: Path) -> None:
    (folder / "my_package" / "unfinished.py").write_text(
        SOURCE.replace("def activations", "def other").replace('"low_rank"', '"unfinished"')
    )
    words = ("--import", "my_package.unfinished", "--data", "data")
    for command in (("plan", "mine"), ("train", "mine", "--run", "unfinished")):
        line = refused(folder, *command, *words)
        assert "encoder.model=unfinished: the block does not implement activations" in line


def test_settings_of_an_own_encoder_are_printed_and_checked(folder: Path) -> None:
    own = ("--import", MODULE)
    printed = succeed(folder, "config", "mine", *own, "--encoder.options.rank", 2)
    (folder / "mine.yaml").write_text(printed)
    assert succeed(folder, "config", "mine", *own, "--config", "mine.yaml") == printed
    assert re.search(r"--encoder.model \S*low_rank", run(folder, "train", "mine", *own, "--help")[1])
    assert "encoder.options.rnk: unknown; did you mean options.rank?" in refused(
        folder, "config", "mine", *own, "--encoder.options.rnk", 2
    )
    assert "encoder.options.rank='x'" in refused(
        folder, "config", "mine", *own, "--encoder.options.rank", "x"
    )


def test_the_module_is_found_on_pythonpath(folder: Path) -> None:
    path = os.pathsep.join([str(folder), os.environ.get("PYTHONPATH", "")])
    done = subprocess.run(
        [sys.executable, "-m", "longplay.launch.config", "mine", "--import", MODULE],
        env={**os.environ, "PYTHONPATH": path},
        check=True,
        capture_output=True,
        text=True,
    )
    assert "model: low_rank" in done.stdout


def test_a_module_that_is_not_found_is_named(folder: Path) -> None:
    line = refused(folder, "config", "mine", "--import", "my_package.other")
    assert "--import my_package.other: cannot be imported (No module named 'my_package.other')" in line
