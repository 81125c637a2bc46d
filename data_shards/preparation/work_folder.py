"""The temporary folder from which the same `prepare` command resumes after an interruption."""

from __future__ import annotations

import json
import os
import shutil
import uuid
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from longplay.common.atomic import named_errors, write_bytes
from longplay.common.locks import FolderLock, FolderLockedError, is_lock_file
from longplay.data_shards.errors import DataError
from longplay.data_shards.preparation.shares import Share
from longplay.data_shards.storage.manifest import fingerprint

_KEY_NAME = "key.json"


@dataclass(frozen=True)
class WorkFolder:
    """Temporary folders of one `prepare` command.

    Attributes:
        path: folder of intermediate files.
        partial: folder next to the output path that contains the unfinished dataset.
    """

    path: Path
    partial: Path

    @property
    def both(self) -> tuple[Path, Path]:
        """The two folders."""
        return self.path, self.partial

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
    """Lock the temporary folders of the command that writes `out`; clear them if their `key` differs.

    The folders remain after an interruption. Call `remove` when they are no longer needed.

    Raises:
        DataError: a folder cannot be created, holds files of the user or the work of parts, or is in use by
            another process.
    """
    work = _folders(out, scratch)
    with _locked(work, out, shared=False):
        keys = [_read_key(folder) for folder in work.both]
        if any(isinstance(found, dict) for found in keys):
            raise _foreign(work)
        if any(found != json.loads(json.dumps(key)) for found in keys):
            for folder in work.both:
                _clear(folder)
            for folder in work.both:
                write_bytes(folder / _KEY_NAME, json.dumps(key).encode(), sync=False)
        work.output.mkdir(exist_ok=True)
        yield work


@contextmanager
def parts_folder(out: Path, scratch: Path | None, key: Any, share: Share | None) -> Iterator[WorkFolder]:
    """Lock the temporary folders that the parts of a job share. They are never cleared.

    Args:
        out: the place of the dataset.
        scratch: parent of the intermediate files; None: that of `out`.
        key: plain data that is the same for all parts of the job.
        share: the part that works; no other process may do so. None: no part may work.

    Raises:
        DataError: a folder cannot be created, holds files of the user or the work of another command, or is
            in use by another process.
    """
    work, marked = _folders(out, scratch), json.loads(json.dumps({"parts": key}))
    with _locked(work, out, shared=share is not None), ExitStack() as lock:
        for folder in work.both:
            is_used = any(not entry.name.startswith((".", _KEY_NAME)) for entry in folder.iterdir())
            found = _read_key(folder)  # after the look at the files: the key is written first
            if found != marked and (is_used or found is not None):
                raise _foreign(work)
            if found is None:
                _write_key(folder, marked)
        if share is not None:
            try:
                lock.enter_context(FolderLock(work.folder(f"part-{share.part}")))
            except FolderLockedError:
                raise DataError(
                    f"{work.path}: another process is preparing part {share.part}; wait until it ends"
                ) from None
        work.output.mkdir(exist_ok=True)
        yield work


def _folders(out: Path, scratch: Path | None) -> WorkFolder:
    name = (
        f"{out.name}.work" if scratch is None else f"{out.name}.work-{fingerprint(os.path.realpath(out))[:8]}"
    )
    path = (out.parent if scratch is None else scratch) / name
    return WorkFolder(path, out.with_name(f"{out.name}.partial"))


def _foreign(work: WorkFolder) -> DataError:
    return DataError(
        f"{work.path}: holds the unfinished work of another command (other files, options or number of "
        f"parts); finish it, or delete this folder and {work.partial}, or choose another --out"
    )


@contextmanager
def _locked(work: WorkFolder, out: Path, *, shared: bool) -> Iterator[None]:
    """Create and lock the folders.

    Raises:
        DataError: see `_lock`.
    """
    with ExitStack() as locks:
        for folder in (work.partial, work.path):
            locks.enter_context(_lock(folder, out, shared=shared))
        yield


def _lock(folder: Path, out: Path, *, shared: bool) -> FolderLock:
    """Create and lock a folder.

    Raises:
        DataError: it cannot be created, holds files that `prepare` did not write, or is in use by another
            process.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
        names = [entry.name for entry in folder.iterdir() if not is_lock_file(entry)]
        names = sorted(name for name in names if not name.startswith(f".{_KEY_NAME}"))
        if names and not (folder / _KEY_NAME).exists():
            raise DataError(
                f"{folder}: exists and holds {names[0]}, which `longplay prepare` did not write; "
                "move the folder away, or choose another --out"
            )
        return FolderLock(folder, shared=shared)
    except FolderLockedError:
        raise DataError(
            f"{folder}: another process is preparing {out}; wait for it, or choose another --out"
        ) from None
    except OSError as error:
        raise DataError(
            f"{folder}: cannot be created ({error.strerror}); choose another --out or --scratch"
        ) from error


def remove(work: WorkFolder) -> None:
    """Delete the temporary folders. If this is interrupted, the next command deletes the rest."""
    for folder in work.both:
        _clear(folder)
        shutil.rmtree(folder, ignore_errors=True)


def _clear(folder: Path) -> None:
    """Delete the files of a command. The key is invalidated first, so that the rest is not resumed."""
    write_bytes(folder / _KEY_NAME, b"null", sync=False)
    for entry in folder.iterdir():
        if entry.is_dir():
            shutil.rmtree(entry, ignore_errors=True)
        elif not is_lock_file(entry) and entry.name != _KEY_NAME:
            entry.unlink()


def _write_key(folder: Path, key: Any) -> None:
    """Write the key, which several parts may do at the same time."""
    unfinished = folder / f".{_KEY_NAME}.{uuid.uuid4().hex}"
    with named_errors(folder / _KEY_NAME, instead_of=unfinished):
        unfinished.write_text(json.dumps(key))
        unfinished.replace(folder / _KEY_NAME)


def _read_key(folder: Path) -> Any:
    try:
        return json.loads((folder / _KEY_NAME).read_text())
    except (OSError, ValueError):
        return None
