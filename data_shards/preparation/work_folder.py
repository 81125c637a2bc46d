"""The temporary folder from which the same `prepare` command resumes after an interruption."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
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
        partial: folder next to the final place of the dataset, which contains the unfinished one.
    """

    path: Path
    partial: Path

    @property
    def output(self) -> Path:
        """The unfinished dataset."""
        return self.partial / "dataset"

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
        DataError: a folder cannot be created, holds files of the user, or is in use by another process.
    """
    name = f"{out.name}.work" if scratch is None else f"{out.name}.work-{fingerprint(str(out.resolve()))[:8]}"
    path = (out.parent if scratch is None else scratch) / name
    work = WorkFolder(path, out.with_name(f"{out.name}.partial"))
    with ExitStack() as locks:
        for folder in (work.partial, work.path):
            locks.enter_context(_locked(folder, out))
        stale = any(_read_key(folder) != json.loads(json.dumps(key)) for folder in (work.path, work.partial))
        if stale:
            for folder in (work.path, work.partial):
                _clear(folder)
            for folder in (work.path, work.partial):
                write_bytes(folder / _KEY_NAME, json.dumps(key).encode(), sync=False)
        work.output.mkdir(exist_ok=True)
        yield work


def _locked(folder: Path, out: Path) -> FolderLock:
    """Create and lock a folder.

    Raises:
        DataError: it cannot be created, is not one that `prepare` made, or is in use by another process.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
        names = {entry.name for entry in folder.iterdir() if not is_lock_file(entry)}
        if names and _KEY_NAME not in names:
            raise DataError(
                f"{folder}: exists and holds {sorted(names)[0]}, which `longplay prepare` did not write; "
                "move the folder away, or choose another --out"
            )
        return FolderLock(folder)
    except FolderLockedError:
        raise DataError(
            f"{folder}: another process is preparing {out}; wait for it, or choose another --out"
        ) from None
    except OSError as error:
        raise DataError(
            f"{folder}: cannot be created ({error.strerror}); choose another --out or --scratch"
        ) from error


def remove(work: WorkFolder) -> None:
    """Delete the temporary folders. If this is interrupted, the next job deletes the rest."""
    for folder in (work.path, work.partial):
        _clear(folder)
        shutil.rmtree(folder, ignore_errors=True)


def _clear(folder: Path) -> None:
    """Delete the files of a job. The key is invalidated first, so that a partial deletion is not resumed."""
    write_bytes(folder / _KEY_NAME, b"null", sync=False)
    for entry in folder.iterdir():
        if entry.is_dir():
            shutil.rmtree(entry, ignore_errors=True)
        elif not is_lock_file(entry) and entry.name != _KEY_NAME:
            entry.unlink()


def _read_key(folder: Path) -> Any:
    try:
        return json.loads((folder / _KEY_NAME).read_text())
    except (OSError, ValueError):
        return None
