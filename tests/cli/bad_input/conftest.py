"""A dataset and a run folder to damage, and a check of a refused command."""

import re
import shutil
from pathlib import Path

import pytest
import torch
from support.refusals import SIZE, Refuse, snapshot

from longplay.data_shards.storage.dataset import Dataset
from longplay.distributed.runtime.world import World
from longplay.launch.cli import main
from longplay.launch.run_folders.run_folder import RunFolder
from longplay.launch.settings.recipes import get_recipe
from longplay.launch.settings.resolving import resolve


@pytest.fixture(scope="module")
def dataset_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("prepared") / "set"
    assert main(["prepare", "synthetic", "--out", str(folder), *SIZE]) == 0
    return folder


@pytest.fixture
def data(dataset_folder: Path, tmp_path: Path) -> Path:
    """A copy of the dataset that the test may damage."""
    return Path(shutil.copytree(dataset_folder, tmp_path / "set"))


@pytest.fixture
def run(data: Path, tmp_path: Path) -> Path:
    """A run folder of the recipe mambarec without a checkpoint."""
    folder = tmp_path / "run"
    config = resolve("mambarec", get_recipe("mambarec"), [])
    dataset, run = Dataset.open(data), RunFolder(folder)
    with run.claimed(config, dataset, World()):
        run.write_config(config, dataset, data, torch.device("cpu"))
    run.release()
    return folder


@pytest.fixture
def refuse(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> Refuse:
    """Return a function that checks that a command prints one line matching `pattern` and changes no file."""

    def check(*words: object, pattern: str) -> None:
        capsys.readouterr()
        before, has_group = snapshot(tmp_path), torch.distributed.is_initialized()  # by another test
        assert main([str(word) for word in words]) == 2
        (line,) = capsys.readouterr().err.splitlines()
        assert line.startswith("longplay: error: ")
        assert re.search(pattern, line), line
        assert snapshot(tmp_path) == before
        assert torch.distributed.is_initialized() == has_group

    return check
