"""The temporary folder from which the same `prepare` command resumes after an interruption."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from longplay.common.atomic import write_bytes
from longplay.common.locks import FolderLock, FolderLockedError, is_lock_file
from longplay.data_shards.errors import DataError
from longplay.data_shards.storage.manifest import fingerprint

_KEY_NAME = "key.json"


@dataclass(frozen=True)
class WorkFolder:
    """Temporary folders of one job.

    Attributes:
        path: folder of intermediate files.
        output: folder of the unfinished dataset, next to its final place.
    """

    path: Path
    output: Path

    def is_done(self, stage: str) -> bool:
        """Return whether this or an earlier process has marked `stage` as done."""
        return (self.path / f"{stage}.done").exists()

    def mark_done(self, stage: str) -> None:
        """Mark `stage` as done, so that it is not repeated."""
        (self.path / f"{stage}.done").touch()

    def folder(self, name: str) -> Path:
        """Return a subfolder, created if necessary."""
        folder = self.path / name
        folder.mkdir(exist_ok=True)
        return folder


@contextmanager
def work_folder(out: Path, scratch: Path | None, key: Any) -> Iterator[WorkFolder]:
    """Lock the temporary folders of the job that writes `out`; clear them if another `key` has used them.

    The folders remain after an interruption. Call `remove` when they are no longer needed.

    Raises:
        DataError: a folder cannot be created, or another process uses it.
    """
    name = f"{out.name}.work" if scratch is None else f"{out.name}.work-{fingerprint(str(out.resolve()))[:8]}"
    path = (out.parent if scratch is None else scratch) / name
    work = WorkFolder(path, out.with_name(f"{out.name}.partial"))
    try:
        path.mkdir(parents=True, exist_ok=True)
        out.parent.mkdir(parents=True, exist_ok=True)
        lock = FolderLock(path)
    except FolderLockedError:
        raise DataError(
            f"{path}: another process is preparing {out}; wait for it, or choose another --out"
        ) from None
    except OSError as error:
        raise DataError(
            f"{path}: cannot be created ({error.strerror}); choose another --out or --scratch"
        ) from error
    with lock:
        if _read_key(path) != json.loads(json.dumps(key)):
            _clear(work)
            write_bytes(path / _KEY_NAME, json.dumps(key).encode(), sync=False)
        work.output.mkdir(exist_ok=True)
        yield work


def remove(work: WorkFolder) -> None:
    """Delete the temporary folders, the key first, so that a partial deletion is not resumed."""
    (work.path / _KEY_NAME).unlink(missing_ok=True)
    shutil.rmtree(work.output, ignore_errors=True)
    shutil.rmtree(work.path, ignore_errors=True)


def _clear(work: WorkFolder) -> None:
    """Delete the files of another job, its key first."""
    (work.path / _KEY_NAME).unlink(missing_ok=True)
    shutil.rmtree(work.output, ignore_errors=True)
    for entry in work.path.iterdir():
        if entry.is_dir():
            shutil.rmtree(entry)
        elif not is_lock_file(entry):
            entry.unlink()


def _read_key(path: Path) -> Any:
    try:
        return json.loads((path / _KEY_NAME).read_text())
    except (OSError, ValueError):
        return None
