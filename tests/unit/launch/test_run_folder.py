"""A run folder is claimed by one command; a command that is refused leaves it as it was."""

from pathlib import Path

import pytest
import torch
from support.runs import small_config, small_dataset

from longplay.data_shards.storage.dataset import Dataset
from longplay.distributed.runtime.world import World
from longplay.launch.run_folders.run_folder import RunFolder
from longplay.launch.settings.errors import ConfigError


@pytest.fixture(scope="module")
def dataset(tmp_path_factory: pytest.TempPathFactory) -> Dataset:
    return Dataset.open(small_dataset(tmp_path_factory.mktemp("run_folder")))


def paths(folder: Path) -> set[str]:
    return {str(path.relative_to(folder)) for path in folder.rglob("*")}


def refuse_after_claim(folder: RunFolder, dataset: Dataset) -> None:
    with pytest.raises(ConfigError, match="refused"), folder.claimed(small_config(), dataset, World()):
        raise ConfigError("refused")


def test_a_refusal_removes_what_the_claim_created_and_nothing_else(tmp_path: Path, dataset: Dataset) -> None:
    refuse_after_claim(RunFolder(tmp_path / "runs" / "a"), dataset)
    assert not paths(tmp_path)
    (tmp_path / "b" / "logs").mkdir(parents=True)
    refuse_after_claim(RunFolder(tmp_path / "b"), dataset)
    assert paths(tmp_path) == {"b", "b/logs"}


def test_a_run_keeps_its_id_and_another_one_has_another(tmp_path: Path, dataset: Dataset) -> None:
    ids = []
    for name in ("a", "a", "b"):
        folder = RunFolder(tmp_path / name)
        with folder.claimed(small_config(), dataset, World()):
            folder.write_config(small_config(), dataset, dataset.path, torch.device("cpu"))
        folder.release()
        ids.append(RunFolder(tmp_path / name).owner()["run_id"])
    assert ids[0] == ids[1] != ids[2]


def test_two_starters_of_a_new_folder_do_not_mix(tmp_path: Path, dataset: Dataset) -> None:
    first, second = RunFolder(tmp_path / "run"), RunFolder(tmp_path / "run")
    with first.claimed(small_config(), dataset, World()):
        second.check(small_config(), dataset)
        with (
            pytest.raises(ConfigError, match="another process is training in it"),
            second.claimed(small_config("--seed", "9"), dataset, World()),
        ):
            pass
        first.write_config(small_config(), dataset, dataset.path, torch.device("cpu"))
    first.release()
    with (
        pytest.raises(ConfigError, match=r"other settings \(seed: 7 -> 9"),
        second.claimed(small_config("--seed", "9"), dataset, World()),
    ):
        pass
    assert paths(tmp_path / "run") == {"config.json", "checkpoints", ".lock"}


def test_what_a_killed_start_leaves_is_a_new_folder(tmp_path: Path, dataset: Dataset) -> None:
    (tmp_path / "checkpoints").mkdir()
    (tmp_path / ".lock").touch()
    assert not RunFolder(tmp_path).check(small_config(), dataset)
    (tmp_path / "checkpoints" / "mine").touch()
    with pytest.raises(ConfigError, match="neither empty nor a run folder"):
        RunFolder(tmp_path).check(small_config(), dataset)


@pytest.mark.parametrize("name", ["checkpoints", "tensorboard", "best.json"])
@pytest.mark.parametrize("kind", ["file", "folder", "link to nothing"])
def test_a_run_is_not_resumed_where_it_could_not_be_saved(
    tmp_path: Path, dataset: Dataset, name: str, kind: str
) -> None:
    folder = RunFolder(tmp_path)
    with folder.claimed(small_config(), dataset, World()):
        folder.write_config(small_config(), dataset, dataset.path, torch.device("cpu"))
    folder.release()
    folder.checkpoints.rmdir()
    path = tmp_path / name
    {
        "file": path.touch,
        "folder": path.mkdir,
        "link to nothing": lambda: path.symlink_to(tmp_path / "gone"),
    }[kind]()
    if kind == ("file" if name == "best.json" else "folder"):
        assert RunFolder(tmp_path).check(small_config(), dataset)
    else:
        with pytest.raises(ConfigError, match=f"{name}: is not a f.*; move it away"):
            RunFolder(tmp_path).check(small_config(), dataset)
