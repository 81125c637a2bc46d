"""An exclusive lock on a folder, released when its process ends, however it ends."""

import fcntl
import os
from pathlib import Path
from types import TracebackType

_LOCK_NAME = ".lock"


class FolderLockedError(BlockingIOError):
    """Another process holds the lock of a folder."""


class FolderLock:
    """Holds the lock of `folder` from construction until `release` or the end of the process.

    The file `.lock` in the folder names the holder's host and process id. On a file system without locks
    every attempt succeeds.

    Raises:
        FolderLockedError: another process holds the lock.
        OSError: the lock file cannot be written.
    """

    def __init__(self, folder: Path) -> None:
        self._file = open(folder / _LOCK_NAME, "a+")
        try:
            fcntl.flock(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            self._file.close()
            raise FolderLockedError(f"{folder}: is locked by another process") from None
        except OSError:
            return  # a file system without locks
        self._file.truncate(0)
        self._file.write(f"{os.uname().nodename} {os.getpid()}\n")
        self._file.flush()

    def release(self) -> None:
        """Release the lock; a second call does nothing."""
        if not self._file.closed:
            self._file.truncate(0)
            self._file.close()

    def __enter__(self) -> "FolderLock":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.release()


def is_lock_file(path: Path) -> bool:
    """Return whether `path` is the lock file of its folder."""
    return path.name == _LOCK_NAME


def is_locked(folder: Path) -> bool:
    """Return whether a process holds the lock of `folder`, as far as this machine can see."""
    return _holder(folder) is not None


def lock_holder(folder: Path) -> int | None:
    """Return the id of the process on this machine that holds the lock of `folder`; None without one."""
    host, _, process = (_holder(folder) or "").partition(" ")
    return int(process) if host == os.uname().nodename and process.strip().isdigit() else None


def _holder(folder: Path) -> str | None:
    """Return the content of a held lock file; None if the lock is free."""
    try:
        with open(folder / _LOCK_NAME) as lock:
            try:
                fcntl.flock(lock, fcntl.LOCK_SH | fcntl.LOCK_NB)
            except BlockingIOError:
                return lock.read()
    except OSError:
        pass
    return None
