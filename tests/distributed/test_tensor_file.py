"""Tensor files: flushed on the way, read in place, and a disk that fails is never overheard."""

import errno
import hashlib
import os
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from longplay.distributed.checkpoints import tensor_file
from longplay.distributed.checkpoints.tensor_file import write_tensors


@pytest.fixture(autouse=True)
def flush_often(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tensor_file, "_BLOCK_BYTES", 1 << 10)
    monkeypatch.setattr(tensor_file, "_FLUSH_BYTES", 3 << 10)


def test_a_file_is_safetensors_with_its_checksum(tmp_path: Path) -> None:
    tensors = {"weight": torch.randn(700, 5), "count": torch.arange(3)}
    written = write_tensors(tmp_path / "a.safetensors", tensors)
    content = (tmp_path / "a.safetensors").read_bytes()
    assert (written.num_bytes, written.sha256) == (len(content), hashlib.sha256(content).hexdigest())
    loaded = load_file(tmp_path / "a.safetensors")
    assert all(torch.equal(loaded[name], tensor) for name, tensor in tensors.items())


def test_a_flush_that_fails_is_an_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    flushed = []

    def fail_once(descriptor: int) -> None:
        flushed.append(descriptor)
        if len(flushed) == 2:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "fdatasync", fail_once)
    with pytest.raises(OSError, match="No space left"):
        write_tensors(tmp_path / "a.safetensors", {"weight": torch.zeros(5000)})
    assert len(flushed) > 2
