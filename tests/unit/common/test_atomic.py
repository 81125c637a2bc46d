"""Atomic writes: a file or folder has either its old or its new content."""

import errno
import json
import os
from pathlib import Path

import pytest

from longplay.common.atomic import atomic_file, replace_folder, write_json, write_text
from longplay.common.tensor_file import write_tensors


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def test_write_json_replaces_the_file(tmp_path: Path) -> None:
    write_json(tmp_path / "x.json", {"a": 1})
    write_json(tmp_path / "x.json", {"a": 2})
    assert json.loads((tmp_path / "x.json").read_text()) == {"a": 2}
    assert names(tmp_path) == ["x.json"]


def test_unserializable_value_keeps_the_old_file(tmp_path: Path) -> None:
    write_json(tmp_path / "x.json", {"a": 1})
    with pytest.raises(TypeError):
        write_json(tmp_path / "x.json", {"a": object()})
    assert json.loads((tmp_path / "x.json").read_text()) == {"a": 1}


@pytest.mark.parametrize("sync", [True, False])
def test_exception_while_writing_keeps_the_old_file(tmp_path: Path, sync: bool) -> None:
    write_text(tmp_path / "x", "old")

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


def test_replace_folder_replaces_an_existing_folder(tmp_path: Path) -> None:
    final = folder_with(tmp_path / "final", "old")
    replace_folder(folder_with(tmp_path / "partial", "new"), final)
    assert (final / "file").read_text() == "new"
    assert names(tmp_path) == ["final"]


def test_failed_replace_restores_the_old_folder(tmp_path: Path) -> None:
    final = folder_with(tmp_path / "final", "old")
    with pytest.raises(FileNotFoundError):
        replace_folder(tmp_path / "absent", final)
    assert (final / "file").read_text() == "old"
    assert names(tmp_path) == ["final"]


def test_an_error_of_writing_names_the_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(_: int) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "fsync", full)
    for write in (lambda path: write_text(path, "new"), lambda path: write_tensors(path, {})):
        with pytest.raises(OSError, match="No space left on device") as error:
            write(tmp_path / "x")
        assert error.value.filename == str(tmp_path / "x")


def test_an_error_does_not_name_the_temporary_file(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError) as error:
        write_text(tmp_path / "absent" / "x", "new")
    assert error.value.filename == str(tmp_path / "absent" / "x")
