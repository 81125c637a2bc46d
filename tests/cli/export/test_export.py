"""`longplay export`: the files of an export, and what replaces, damages and packages them."""

import json
import re
import resource
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path
from typing import Any

import polars as pl
import pytest
import torch
from safetensors.torch import load_file
from support.commands import Command, longplay
from support.datasets import REPOSITORY
from support.json_edits import edit_json

import longplay as package
from longplay.common.locks import FolderLock
from longplay.common.tensor_file import read_tensors, write_tensors
from longplay.data_shards.storage.dataset import Dataset
from longplay.distributed.checkpoints.checkpoint import Checkpoint, open_checkpoint
from longplay.distributed.runtime.errors import CheckpointError
from longplay.distributed.table.row_order import RowOrder
from longplay.launch.cli import main
from longplay.launch.evaluation.loading import open_dataset
from longplay.launch.exports.item_table import write_table
from longplay.launch.exports.model_folder import check_output, write_export
from longplay.launch.settings.errors import ConfigError
from longplay.launch.settings.saved import read_config
from longplay.serving.export_format import ExportError


def test_the_files_hold_the_checkpoint_in_item_order(run: Path, data: Path, exported: Path) -> None:
    config = json.loads((exported / "config.json").read_text())
    dataset = Dataset.open(data)
    assert config["dataset_id"] == dataset.dataset_id
    assert (config["num_items"], config["context_length"], config["format_version"]) == (
        dataset.num_items,
        40,
        1,
    )
    best = json.loads((run / "best.json").read_text())
    assert config["checkpoint"]["name"] == best["checkpoint"]
    assert config["checkpoint"]["metrics"][best["metric"]] == best["value"]

    table = load_file(exported / "item_table.safetensors")["weight"]
    assert table.shape == (dataset.num_items + 1, 16)
    assert torch.equal(table[0], torch.zeros(16))
    checkpoint = open_checkpoint(run / "checkpoints" / best["checkpoint"])
    files = [load_file(file)["weight"] for file in sorted(checkpoint.path.glob("table-*"))]
    assert len(files) == 2
    by_position = torch.cat(files)
    model = package.load(exported, verify=True)
    assert torch.equal(model.rows.weight, table)
    assert torch.equal(
        table[1:], by_position[RowOrder(dataset.num_items).positions(torch.arange(1, len(table)))]
    )
    items = pl.read_parquet(exported / "items.parquet")
    assert items.equals(pl.read_parquet(data / "items.parquet").select(items.columns).cast(items.schema))  # pyright: ignore[reportArgumentType] -- a schema is a mapping


def test_block_size_does_not_change_the_written_table(run: Path, exported: Path, tmp_path: Path) -> None:
    checkpoint = open_checkpoint(max((run / "checkpoints").glob("step-*")))
    sums = [write_table(tmp_path / "table", checkpoint, block_bytes) for block_bytes in (64, 4096, 1 << 30)]
    assert len({written.sha256 for written in sums}) == 1
    shutil.copytree(checkpoint.path, tmp_path / "copy")
    (tmp_path / "copy" / "table-junk.safetensors").write_text("junk")
    copy = Checkpoint(path=tmp_path / "copy", state=checkpoint.state)
    assert write_table(tmp_path / "table", copy).sha256 == sums[0].sha256
    files = dict(checkpoint.state["files"])
    del files[min(name for name in files if name.startswith("table-"))]
    torn = Checkpoint(path=checkpoint.path, state={**checkpoint.state, "files": files})
    with pytest.raises(CheckpointError, match="lacks 150 rows"):
        write_table(tmp_path / "table", torn)


def test_overwrite_replaces_an_export_and_nothing_else(run: Path, exported: Path, tmp_path: Path) -> None:
    folder = tmp_path / "model"
    shutil.copytree(exported, folder)
    words = ["export", str(run), "--out", str(folder)]
    command = Command(words, tmp_path / "log")
    assert command.wait() == 2
    assert "add --overwrite" in command.output.read_text()
    before = json.loads((folder / "config.json").read_text())
    longplay([*words, "--overwrite", "--checkpoint", "last"], tmp_path / "log")
    assert json.loads((folder / "config.json").read_text())["files"].keys() == before["files"].keys()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["log", "model"]

    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "thesis.txt").write_text("years of work")
    command = Command(["export", str(run), "--out", str(tmp_path / "other"), "--overwrite"], tmp_path / "log")
    assert command.wait() == 2
    assert "exists and is not an export; give another folder" in command.output.read_text()
    assert (tmp_path / "other" / "thesis.txt").exists()


@pytest.mark.parametrize("out", [".", "..", "/"])
def test_an_output_without_a_name_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, out: str
) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ConfigError, match=r"is not the name of a new folder; give one, such as .*model"):
        check_output(Path(out), overwrite=True)


def test_a_second_export_to_a_folder_is_refused_while_the_first_writes(
    run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["export", str(run), "--out", str(tmp_path / "model")]
    unfinished = tmp_path / ".model.writing"
    unfinished.mkdir()
    (unfinished / "encoder.safetensors").write_text("unfinished")
    with FolderLock(unfinished):
        assert main(words) == 2
        assert "another process is exporting to it; wait for it" in capsys.readouterr().err
        assert (unfinished / "encoder.safetensors").read_text() == "unfinished"
    assert main(words) == 0  # as after a kill
    assert [path.name for path in tmp_path.iterdir()] == ["model"]
    assert not (tmp_path / "model" / ".lock").exists()
    package.load(tmp_path / "model", verify=True)


@pytest.mark.parametrize("file", ["encoder", "table-*"])
def test_weights_that_are_not_finite_are_not_exported(run: Path, tmp_path: Path, file: str) -> None:
    checkpoint = open_checkpoint(max((run / "checkpoints").glob("step-*")))
    shutil.copytree(checkpoint.path, tmp_path / "copy")
    (path, *_) = (tmp_path / "copy").glob(f"{file}.safetensors")
    tensors = read_tensors(path)
    next(value for name, value in tensors.items() if name.startswith("weight")).view(-1)[3] = float("nan")
    write_tensors(path, tensors)
    copy = Checkpoint(path=tmp_path / "copy", state=checkpoint.state)
    config, out = read_config(run), tmp_path / "model"
    with pytest.raises(CheckpointError, match=r"copy: .* is not finite; give another checkpoint"):
        write_export(out, run, config, open_dataset(run, None), copy)
    assert not out.exists()


@pytest.mark.parametrize("kib", [1, 8, 16])
def test_a_full_disk_is_reported_in_one_line_and_leaves_nothing(
    run: Path, tmp_path: Path, kib: int, capsys: pytest.CaptureFixture[str]
) -> None:
    """A limit of the size of files stands for the full disk."""
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (kib << 10, limits[1]))
    try:
        assert main(["export", str(run), "--out", str(tmp_path / "model")]) == 2
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    (line,) = capsys.readouterr().err.splitlines()
    assert re.search(
        r"--out .*model: cannot be written \(.*File too large.*\); free disk space, or give", line
    )
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("harm", "message"),
    [
        (lambda folder: shutil.rmtree(folder), "does not exist"),
        (lambda folder: (folder / "config.json").unlink(), "is not an export"),
        (lambda folder: (folder / "config.json").write_text("{"), "cannot be read"),
        (lambda folder: (folder / "config.json").write_text("[]"), "is not an export"),
        (
            lambda folder: retype(folder, '"num_items": 300', '"num_items": 299'),
            "does not match",
        ),
        (lambda folder: edit_config(folder, format_version=2), "format version 2 is not 1"),
        (
            lambda folder: edit_config(folder, encoder={"model": "bert4rec"}),
            "is not registered",
        ),
        (lambda folder: edit_config(folder, files={}), "does not list"),
        (lambda folder: edit_config(folder, num_items=299), "is not an fp32 table of 300 x 16"),
        (lambda folder: (folder / "items.parquet").unlink(), "is missing"),
        (lambda folder: flip(folder / "encoder.safetensors", -1), "sha256 differs"),
        (lambda folder: flip(folder / "item_table.safetensors", 0), "invalid header"),
        (lambda folder: flip(folder / "items.parquet", 99), "sha256 differs"),
        (lambda folder: (folder / "item_table.safetensors").write_bytes(b"abc"), "bytes long"),
    ],
)
def test_a_damaged_export_is_refused(exported: Path, tmp_path: Path, harm: Any, message: str) -> None:
    folder = tmp_path / "model"
    shutil.copytree(exported, folder)
    harm(folder)
    with pytest.raises(ExportError, match=message):
        package.load(folder)


def test_verify_finds_a_changed_row(exported: Path, tmp_path: Path) -> None:
    folder = tmp_path / "model"
    shutil.copytree(exported, folder)
    flip(folder / "item_table.safetensors", -1)
    package.load(folder)
    with pytest.raises(ExportError, match="sha256 differs"):
        package.load(folder, verify=True)


def edit_config(folder: Path, **changes: Any) -> None:
    edit_json(folder / "config.json", **changes)


def retype(folder: Path, old: str, new: str) -> None:
    content = (folder / "config.json").read_text()
    assert old in content
    (folder / "config.json").write_text(content.replace(old, new))


def flip(file: Path, at: int) -> None:
    content = bytearray(file.read_bytes())
    content[at] ^= 0xFF
    file.write_bytes(content)


@pytest.mark.slow
def test_a_wheel_holds_the_package_and_all_folders(tmp_path: Path) -> None:
    source = tmp_path / "source"
    listed = subprocess.run(
        ["git", "ls-files", "--cached", "--others", "--exclude-standard"],
        cwd=REPOSITORY,
        capture_output=True,
        text=True,
        check=True,
    )
    for name in listed.stdout.splitlines():
        wanted = name.endswith((".py", ".cpp", ".toml", "README.md", "LICENSE", "py.typed"))
        if wanted and not name.startswith(".typing"):
            (source / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(REPOSITORY / name, source / name)
    pip = [sys.executable, "-m", "pip", "--quiet", "--disable-pip-version-check"]
    subprocess.run(
        [*pip, "wheel", "--no-deps", "--no-build-isolation", "-w", tmp_path, source], check=True, timeout=120
    )
    (wheel,) = tmp_path.glob("*.whl")
    target = tmp_path / "installed"
    with zipfile.ZipFile(wheel) as archive:
        names = archive.namelist()
        archive.extractall(target)
    assert {"longplay/__init__.py", "longplay/py.typed"} <= set(names)
    for folder in ("data_shards", "models", "distributed", "serving", "launch"):
        ours = {f"longplay/{folder}/{path.name}" for path in (source / folder).glob("*.py")}
        assert ours <= set(names)
    code = "import longplay, longplay.launch.cli, longplay.serving.exported_model as e; print(e.__file__)"
    done = subprocess.run(
        [sys.executable, "-S", "-c", f"import sys; sys.path[:0] = {[str(target), *sys.path]!r}; {code}"],
        capture_output=True,
        text=True,
        check=True,
        timeout=120,
        cwd=tmp_path,
    )
    assert done.stdout.startswith(str(target))
