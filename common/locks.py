"""Folder locks, exclusive or shared. The kernel releases a lock when its process exits or is killed."""

import fcntl
import os
from contextlib import suppress
from pathlib import Path
from types import TracebackType
from typing import IO

from longplay.common.atomic import named_errors

_LOCK_NAME = ".lock"


class FolderLockedError(BlockingIOError):
    """Another process holds the lock of a folder."""


class FolderLock:
    """Lock `folder` from construction until `release` or the end of the process.

    The file `.lock` in the folder contains the holder's host name and process id. On a file system that does
    not support locks, locking always succeeds.

    Args:
        folder: the folder, which exists.
        shared: other processes may lock the folder too, if their locks are shared as well.

    Raises:
        FolderLockedError: another process holds the lock.
        OSError: the lock file cannot be written.
    """

    def __init__(self, folder: Path, *, shared: bool = False) -> None:
        # Without a buffer, so that an error of writing is raised here.
        self._file, self._shared = open(lock_file(folder), "ab", buffering=0), shared
        try:
            fcntl.flock(self._file, (fcntl.LOCK_SH if shared else fcntl.LOCK_EX) | fcntl.LOCK_NB)
        except BlockingIOError:
            self._file.close()
            raise FolderLockedError(f"{folder}: locked by another process; wait until it ends") from None
        except OSError:
            return  # the file system does not support locks
        if not _is_at(self._file, lock_file(folder)):  # its holder removed the file before it unlocked it
            self._file.close()
            raise FolderLockedError(f"{folder}: locked by another process; wait until it ends")
        if not shared:
            with named_errors(lock_file(folder)):
                self._file.truncate(0)
                self._file.write(f"{os.uname().nodename} {os.getpid()}\n".encode())

    def release(self) -> None:
        """Release the lock. Idempotent."""
        if not self._file.closed:
            if not self._shared:
                with suppress(OSError):  # the file system may have become read-only
                    self._file.truncate(0)
            self._file.close()

    def __enter__(self) -> "FolderLock":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.release()


def lock_file(folder: Path) -> Path:
    """Return the lock file of a folder."""
    return folder / _LOCK_NAME


def is_lock_file(path: Path) -> bool:
    """Return whether `path` is the lock file of its folder."""
    return path.name == _LOCK_NAME


def is_locked(folder: Path) -> bool:
    """Return whether a process holds the lock of `folder`. Locks that this host cannot see are ignored."""
    return _holder(folder) is not None


def lock_holder(folder: Path) -> int | None:
    """Return the id of the process on this host that holds the lock of `folder`, or None."""
    host, _, process = (_holder(folder) or "").partition(" ")
    return int(process) if host == os.uname().nodename and process.strip().isdigit() else None


def _is_at(file: IO[bytes], path: Path) -> bool:
    """Return whether the open file is still the one at `path`."""
    try:
        return os.path.samestat(os.fstat(file.fileno()), path.stat())
    except FileNotFoundError:
        return False


def _holder(folder: Path) -> str | None:
    """Return the content of the lock file, or None if no process holds the lock."""
    try:
        with open(folder / _LOCK_NAME) as lock:
            try:
                fcntl.flock(lock, fcntl.LOCK_SH | fcntl.LOCK_NB)
            except BlockingIOError:
                return lock.read()
    except OSError:
        pass
    return None
