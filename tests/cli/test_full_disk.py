"""On a full disk a command exits with 2, names the file or folder, and works once there is space."""

import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from support.commands import Command, longplay
from support.refusals import SIZE
from support.runs import read_metrics, small_dataset

from longplay.launch.cli import main

Resize = Callable[[str], None]


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return small_dataset(tmp_path_factory.mktemp("full-disk"))


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[tuple[Path, Resize]]:
    """A folder on a file system of its own, and a function that sets the size of that."""
    folder = tmp_path / "disk"
    folder.mkdir()

    def mount(options: str) -> None:
        subprocess.run(["mount", "-t", "tmpfs", "-o", options, "tmpfs", str(folder)], check=True)

    if subprocess.run(["mount", "-t", "tmpfs", "tmpfs", str(folder)], check=False).returncode:
        pytest.skip("needs permission to mount a tmpfs")
    yield folder, lambda size: mount(f"remount,size={size}")
    subprocess.run(["umount", str(folder)], check=True)


@pytest.mark.parametrize("size", ["8k", "16k"])
def test_prepare_names_the_folder_and_works_with_more_space(
    disk: tuple[Path, Resize], size: str, capsys: pytest.CaptureFixture[str]
) -> None:
    folder, resize = disk
    resize(size)
    words = ["prepare", "synthetic", *SIZE, "--out", str(folder / "data")]
    assert main(words) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert str(folder / "data.") in line
    assert "No space left on device" in line
    assert "free disk space and repeat the command" in line
    resize("64m")
    assert main(words) == 0


def test_inspect_names_the_figure(
    disk: tuple[Path, Resize], data: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder, resize = disk
    resize("8k")
    assert main(["inspect", str(data), "--png", str(folder / "figure.png")]) == 2
    assert f"{folder / 'figure.png'}: No space left on device" in capsys.readouterr().err


@pytest.mark.parametrize("size", ["8k", "40k", "200k"])
def test_train_names_the_run_and_resumes_exactly(
    tmp_path: Path, disk: tuple[Path, Resize], data: Path, size: str
) -> None:
    folder, resize = disk
    resize(size)
    settings = ["--train.max_steps", "12", "--train.checkpoint_every_steps", "3"]
    words = ["train", "small", "--data", str(data), *settings, "--run"]
    assert Command([*words, str(folder / "run")], tmp_path / "log").wait() == 2
    last = (tmp_path / "log").read_text().splitlines()[-1]
    assert last.startswith(f"longplay: error: {folder / 'run'}")
    assert last.endswith("No space left on device; free disk space and repeat the command")
    resize("64m")
    longplay([*words, str(folder / "run")], tmp_path / "log")
    longplay([*words, str(tmp_path / "calm")], tmp_path / "log")
    for tag in ("train/loss", "eval_full_unseen/ndcg@10"):
        assert read_metrics(folder / "run", tag) == read_metrics(tmp_path / "calm", tag)


def test_evaluate_prints_the_metrics_that_it_cannot_write(
    tmp_path: Path, disk: tuple[Path, Resize], data: Path
) -> None:
    folder, resize = disk
    run = folder / "run"
    longplay(
        ["train", "small", "--data", str(data), "--train.max_steps", "2", "--run", str(run)], tmp_path / "log"
    )
    used = sum(file.stat().st_blocks // 2 for file in folder.rglob("*"))
    resize(f"{used}k")
    assert Command(["evaluate", str(run)], tmp_path / "log").wait() == 2
    printed = (tmp_path / "log").read_text()
    assert "full_unseen ndcg@10" in printed
    assert printed.splitlines()[-1].startswith(f"longplay: error: {run}")
    assert "Traceback" not in printed
