"""A dataset, a run on two ranks and its export."""

from pathlib import Path

import pytest
from support.commands import longplay
from support.exports import trained
from support.runs import small_dataset


@pytest.fixture(scope="session")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return small_dataset(tmp_path_factory.mktemp("export"))


@pytest.fixture(scope="session")
def run(data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return trained(data, tmp_path_factory.mktemp("run"), world_size=2)


@pytest.fixture(scope="session")
def exported(run: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("exported") / "model"
    printed = longplay(["export", str(run), "--out", str(folder)], folder.parent / "log")
    assert f"longplay.load({str(folder)!r})" in printed
    assert [path.name for path in folder.parent.iterdir() if path.name.startswith(".")] == []
    return folder
