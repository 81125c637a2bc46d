"""A file or a folder has its old content or its new content, never a part of it."""

import json
from pathlib import Path

import pytest

from longplay.common.atomic import atomic_file, put_in_place, write_json, write_text


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def test_json_is_replaced_whole(tmp_path: Path) -> None:
    write_json(tmp_path / "x.json", {"a": 1})
    write_json(tmp_path / "x.json", {"a": 2})
    assert json.loads((tmp_path / "x.json").read_text()) == {"a": 2}
    assert names(tmp_path) == ["x.json"]


def test_a_value_that_json_cannot_hold_leaves_the_old_file(tmp_path: Path) -> None:
    write_json(tmp_path / "x.json", {"a": 1})
    with pytest.raises(TypeError):
        write_json(tmp_path / "x.json", {"a": object()})
    assert json.loads((tmp_path / "x.json").read_text()) == {"a": 1}


@pytest.mark.parametrize("sync", [True, False])
def test_an_exception_while_writing_leaves_the_old_file_alone(tmp_path: Path, sync: bool) -> None:
    write_text(tmp_path / "x", "old", sync=sync)

    def interrupted() -> None:
        with atomic_file(tmp_path / "x", sync=sync) as file:
            file.write(b"half of the")
            assert (tmp_path / "x").read_text() == "old"
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        interrupted()
    assert (tmp_path / "x").read_text() == "old"
    assert names(tmp_path) == ["x"]


def folder_with(path: Path, content: str) -> Path:
    path.mkdir()
    (path / "file").write_text(content)
    return path


def test_a_folder_replaces_the_one_that_had_its_name(tmp_path: Path) -> None:
    final = folder_with(tmp_path / "final", "old")
    put_in_place(folder_with(tmp_path / "partial", "new"), final)
    assert (final / "file").read_text() == "new"
    assert names(tmp_path) == ["final"]


def test_a_folder_that_cannot_be_renamed_leaves_the_old_one(tmp_path: Path) -> None:
    final = folder_with(tmp_path / "final", "old")
    with pytest.raises(FileNotFoundError):
        put_in_place(tmp_path / "absent", final)
    assert (final / "file").read_text() == "old"
    assert names(tmp_path) == ["final"]
