"""Files and folders that appear complete or not at all: written under a temporary name, renamed to commit."""

import json
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, BinaryIO


def temporary_name(path: Path) -> Path:
    """Return the hidden name beside `path` under which its content is written."""
    return path.with_name(f".{path.name}.writing")


@contextmanager
def atomic_file(path: Path, *, sync: bool = True) -> Iterator[BinaryIO]:
    """Open a temporary file for writing; rename it to `path` when the context ends without an exception.

    After a crash `path` holds the old content or the new content. An exception deletes the temporary file.

    Args:
        sync: whether the content is flushed to disk before the rename. Without it a power failure can leave
            an empty file; a killed process cannot.
    Raises:
        OSError: the file cannot be written.
    """
    partial = temporary_name(path)
    try:
        with partial.open("wb") as file:
            yield file
            if sync:
                file.flush()
                os.fsync(file.fileno())
        partial.replace(path)
    except BaseException:
        partial.unlink(missing_ok=True)
        raise


def write_bytes(path: Path, content: bytes, *, sync: bool = True) -> None:
    """Replace the content of `path` atomically; arguments and errors as in `atomic_file`."""
    with atomic_file(path, sync=sync) as file:
        file.write(content)


def write_text(path: Path, text: str, *, sync: bool = True) -> None:
    """Replace the content of `path` by UTF-8 text atomically; arguments and errors as in `atomic_file`."""
    write_bytes(path, text.encode(), sync=sync)


def write_json(path: Path, value: Any, *, sync: bool = True) -> None:
    """Replace the content of `path` by indented JSON atomically; arguments and errors as in `atomic_file`."""
    write_text(path, json.dumps(value, indent=2) + "\n", sync=sync)


def put_in_place(folder: Path, final: Path) -> None:
    """Rename a complete folder to its final name, and delete the folder that had the name before.

    If the rename fails, the former folder gets its name back.

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
    """Flush a folder's entries to disk, so that renames in it survive a power failure."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
