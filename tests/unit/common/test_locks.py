"""Folder locks: one holder at a time, and a killed holder releases its lock."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from longplay.common.locks import FolderLock, FolderLockedError, is_locked, lock_holder

HOLD = """
import sys
from pathlib import Path
from longplay.common.locks import FolderLock
lock = FolderLock(Path(sys.argv[1]))
print("held", flush=True)
sys.stdin.read()
"""


def test_lock_is_exclusive_until_released(tmp_path: Path) -> None:
    with FolderLock(tmp_path) as lock:
        assert is_locked(tmp_path)
        assert lock_holder(tmp_path) == os.getpid()
        with pytest.raises(FolderLockedError):
            FolderLock(tmp_path)
        assert lock_holder(tmp_path) == os.getpid()
    assert not is_locked(tmp_path)
    assert lock_holder(tmp_path) is None
    lock.release()
    FolderLock(tmp_path).release()


def test_folder_without_lock_file_is_not_locked(tmp_path: Path) -> None:
    assert not is_locked(tmp_path)
    assert lock_holder(tmp_path / "absent") is None


def test_killing_the_holder_releases_the_lock(tmp_path: Path) -> None:
    command = [sys.executable, "-c", HOLD, str(tmp_path)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == b"held\n"
        assert lock_holder(tmp_path) == process.pid
        with pytest.raises(FolderLockedError):
            FolderLock(tmp_path)
        process.kill()
    assert not is_locked(tmp_path)
    FolderLock(tmp_path).release()


def test_shared_locks_exclude_only_exclusive_ones(tmp_path: Path) -> None:
    with FolderLock(tmp_path, shared=True), FolderLock(tmp_path, shared=True):
        with pytest.raises(FolderLockedError):
            FolderLock(tmp_path)
    with FolderLock(tmp_path):
        holder = lock_holder(tmp_path)
        with pytest.raises(FolderLockedError):
            FolderLock(tmp_path, shared=True)
        assert lock_holder(tmp_path) == holder
