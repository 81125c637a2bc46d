"""Atomic writes of files and folders: write under a temporary name, then rename to commit."""

import json
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, BinaryIO


@contextmanager
def named_errors(path: Path, *, instead_of: Path | None = None) -> Iterator[None]:
    """Add `path` to an OSError that names no file, as one of writing or flushing does not.

    Args:
        instead_of: another file whose name is replaced by `path`.
    """
    try:
        yield
    except OSError as error:
        if error.filename is None or str(error.filename) == str(instead_of):
            error.filename = str(path)
        raise


def can_create(path: Path) -> bool:
    """Return whether the file `path` may be written once its missing parents exist. Creates nothing."""
    folder = next(parent for parent in path.absolute().parents if parent.exists())
    return folder.is_dir() and os.access(folder, os.W_OK | os.X_OK) and not path.is_dir()


def temporary_name(path: Path) -> Path:
    """Return the hidden sibling of `path` that holds its content until it is committed."""
    return path.with_name(f".{path.name}.writing")


@contextmanager
def atomic_file(path: Path, *, sync: bool = True) -> Iterator[BinaryIO]:
    """Open a temporary file for writing; rename it to `path` when the context ends without an exception.

    After a crash, `path` holds either the old or the new content. An exception deletes the temporary file.

    Args:
        path: the file to replace.
        sync: flush the content to disk before the rename. Without it, a power failure can leave an empty
            file; killing the process cannot.

    Raises:
        OSError: the file cannot be written; `filename` is `path`.
    """
    partial = temporary_name(path)
    try:
        with named_errors(path, instead_of=partial):
            with partial.open("wb") as file:
                yield file
                if sync:
                    file.flush()
                    os.fsync(file.fileno())
            partial.replace(path)
    except BaseException:
        with suppress(OSError):
            partial.unlink()
        raise


def write_bytes(path: Path, content: bytes, *, sync: bool = True) -> None:
    """Atomically replace the content of `path` with `content`; see `atomic_file`."""
    with atomic_file(path, sync=sync) as file:
        file.write(content)


def write_text(path: Path, text: str) -> None:
    """Atomically replace the content of `path` with UTF-8 text; see `atomic_file`."""
    write_bytes(path, text.encode())


def write_json(path: Path, value: Any) -> None:
    """Atomically replace the content of `path` with indented JSON; see `atomic_file`."""
    write_text(path, json.dumps(value, indent=2) + "\n")


def replace_folder(folder: Path, final: Path) -> None:
    """Rename a complete folder to `final`, replacing any existing folder of that name.

    If the rename fails, the existing folder is restored.

    Raises:
        OSError: a folder cannot be renamed.
    """
    former = final.with_name(f".{final.name}.replaced")
    shutil.rmtree(former, ignore_errors=True)
    if final.exists():
        final.rename(former)
    try:
        folder.rename(final)
    except BaseException:
        if former.exists():
            former.rename(final)
        raise
    sync_folder(final.parent)
    shutil.rmtree(former, ignore_errors=True)


def sync_folder(path: Path) -> None:
    """Flush a folder's entries to disk, so that renames inside it survive a power failure."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
