"""A path is neither a pattern nor relative to the home folder, whatever its characters are."""

import os
import shutil
from pathlib import Path

import pytest

from longplay.data_shards.storage.dataset import Dataset
from longplay.data_shards.storage.verification import find_problems
from longplay.launch.cli import main

NAMES = [
    "[ab]",
    "~",
    "*",
    "?",
    "{a,b}",
    "a b",
    "quo'te",
    'dou"ble',
    "new\nline",
    "%s",
    "$HOME",
    "\\",
]


@pytest.fixture
def events(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Events with string ids and a table of items; the home folder and a folder "a" are others."""
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    monkeypatch.chdir(tmp_path)
    lines = [f"u{user},i{item},{user + item}\n" for user in range(20) for item in range(6)]
    for folder in ("raw", "a"):
        os.makedirs(folder)
    Path("raw/events.csv").write_text("user_id,item_id,timestamp\n" + "".join(lines))
    Path("raw/items.csv").write_text(
        "item_id,title\n" + "".join(f"i{item},title {item}\n" for item in range(6))
    )
    return Path("raw")


@pytest.mark.parametrize("name", NAMES)
def test_a_dataset_lies_and_is_prepared_in_a_folder_of_any_name(events: Path, name: str) -> None:
    folder = Path(name)
    shutil.copytree(events, folder)
    words = ["prepare", "csv", f"{folder}/events.csv", f"--items={folder}/items.csv", f"--out={folder}/data"]
    assert main(words) == 0
    shutil.copytree(folder / "data", "a/data")
    Path("a/data/items.parquet").write_bytes(b"another file")
    dataset = Dataset.open(folder / "data")
    assert list(dataset.items.columns.types) == ["title"]
    assert dataset.items.columns.titles(dataset.items.original_ids.values.arg_sort().to_numpy()[:1] + 1) == [
        "title 0"
    ]
    assert not find_problems(folder / "data")
    assert sorted(path.name for path in folder.iterdir()) == ["data", "events.csv", "items.csv"]


def test_a_path_that_is_not_utf_8_is_named(events: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = Path(os.fsdecode(b"\xff"))
    shutil.copytree(events, folder)
    assert main(["prepare", "csv", f"{folder}/events.csv", f"--items={folder}/items.csv", "--out=data"]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.endswith("events.csv': is not valid utf-8; rename the file or folder")
