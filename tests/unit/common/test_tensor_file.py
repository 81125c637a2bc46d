"""Tensor files: compatibility with the safetensors library, and errors for corrupt files."""

import errno
import hashlib
import json
import os
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file

from longplay.common.tensor_file import (
    TensorBlocks,
    TensorFile,
    TensorFileError,
    read_tensors,
    write_tensors,
)

DTYPES = (torch.float32, torch.float64, torch.float16, torch.bfloat16, torch.int64, torch.int32, torch.uint8)

shapes = st.lists(st.integers(0, 7), max_size=3).map(tuple)
contents = st.dictionaries(
    st.sampled_from(["weight", "exp_avg", "a b", "µ"]), st.tuples(st.sampled_from(DTYPES), shapes), min_size=1
)


def make_tensors(kinds: dict[str, tuple[torch.dtype, tuple[int, ...]]]) -> dict[str, torch.Tensor]:
    return {
        name: (torch.arange(int(torch.tensor(shape).prod())) % 50).to(dtype).view(shape)
        for name, (dtype, shape) in kinds.items()
    }


def same(found: dict[str, torch.Tensor], expected: dict[str, torch.Tensor]) -> bool:
    return found.keys() == expected.keys() and all(
        found[name].dtype == tensor.dtype and torch.equal(found[name], tensor)
        for name, tensor in expected.items()
    )


@given(kinds=contents, block_bytes=st.integers(1, 100))
def test_files_are_interchangeable_with_safetensors(
    tmp_path_factory: pytest.TempPathFactory, kinds: dict, block_bytes: int
) -> None:
    tensors, folder = make_tensors(kinds), tmp_path_factory.mktemp("files")
    ours, theirs = folder / "ours", folder / "theirs"
    written = write_tensors(ours, tensors, block_bytes=block_bytes)
    assert (written.num_bytes, written.sha256) == (
        ours.stat().st_size,
        hashlib.sha256(ours.read_bytes()).hexdigest(),
    )
    save_file(tensors, theirs)
    assert same(load_file(ours), tensors)
    for path in (ours, theirs):
        assert same(read_tensors(path), tensors)
        with TensorFile(path) as file:
            assert same({name: file.map(name) for name in file.names()}, tensors)


def test_tensor_blocks_write_the_same_file_as_the_whole_tensor(tmp_path: Path) -> None:
    whole = torch.randn(10, 3)
    blocks = TensorBlocks((10, 3), torch.float32, iter(whole.split([1, 7, 2])))
    assert (
        write_tensors(tmp_path / "a", {"weight": blocks}).sha256
        == write_tensors(tmp_path / "b", {"weight": whole}).sha256
    )


def test_first_tensor_is_aligned_to_64_bytes(tmp_path: Path) -> None:
    for length in range(1, 80):
        write_tensors(tmp_path / "a", {"w" * length: torch.zeros(3)})
        header_bytes = int.from_bytes((tmp_path / "a").read_bytes()[:8], "little")
        assert (8 + header_bytes) % 64 == 0


@given(start=st.integers(0, 20), count=st.integers(0, 20))
def test_read_rows_fills_contiguous_and_strided_tensors(
    tmp_path_factory: pytest.TempPathFactory, start: int, count: int
) -> None:
    count = min(count, 20 - start)
    table = torch.randn(20, 4)
    path = tmp_path_factory.mktemp("files") / "a"
    write_tensors(path, {"other": torch.zeros(3), "weight": table})
    out, strided = torch.empty(count, 4), torch.empty(4, count).T
    with TensorFile(path) as file:
        file.read_rows("weight", start, out)
        file.read_rows("weight", start, strided)
    assert torch.equal(out, table[start : start + count])
    assert torch.equal(strided, table[start : start + count])


def test_read_rows_rejects_another_dtype_or_row_shape(tmp_path: Path) -> None:
    write_tensors(tmp_path / "a", {"weight": torch.zeros(4, 2)})
    with TensorFile(tmp_path / "a") as file:
        for out in (torch.zeros(1, 3), torch.zeros(1, 2, dtype=torch.float64)):
            with pytest.raises(TensorFileError, match="weight is F32"):
                file.read_rows("weight", 0, out)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "invalid header"),
        (b"abc", "invalid header"),
        ((1 << 62).to_bytes(8, "little") + b"{}", "invalid header"),
        ((2).to_bytes(8, "little") + b"[]", "invalid header"),
        ((2).to_bytes(8, "little") + b"{}x", "size is 11 bytes, expected 10"),
    ],
)
def test_file_of_another_format_raises(tmp_path: Path, content: bytes, message: str) -> None:
    (tmp_path / "a").write_bytes(content)
    with pytest.raises(TensorFileError, match=message):
        TensorFile(tmp_path / "a")


@pytest.mark.parametrize(
    "entry",
    [
        {"dtype": "F33", "shape": [2], "data_offsets": [0, 8]},
        {"dtype": "F32", "shape": [3], "data_offsets": [0, 8]},
        {"dtype": "F32", "shape": [2], "data_offsets": [-8, 0]},
        {"dtype": "F32", "shape": [2]},
    ],
)
def test_inconsistent_header_raises(tmp_path: Path, entry: dict) -> None:
    text = json.dumps({"weight": entry}).encode()
    (tmp_path / "a").write_bytes(len(text).to_bytes(8, "little") + text + bytes(8))
    with pytest.raises(TensorFileError, match="invalid header"):
        TensorFile(tmp_path / "a")


def test_truncated_file_raises(tmp_path: Path) -> None:
    write_tensors(tmp_path / "a", {"weight": torch.zeros(100)})
    content = (tmp_path / "a").read_bytes()
    (tmp_path / "a").write_bytes(content[:-1])
    with pytest.raises(TensorFileError, match="bytes, expected"):
        TensorFile(tmp_path / "a")


def test_failed_flush_while_writing_raises(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    flushed = []

    def fail_once(descriptor: int) -> None:
        flushed.append(descriptor)
        if len(flushed) == 2:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "fdatasync", fail_once)
    with pytest.raises(OSError, match="No space left"):
        write_tensors(tmp_path / "a", {"weight": torch.zeros(5000)}, block_bytes=1 << 10, flush_bytes=3 << 10)
    assert len(flushed) > 2


def test_a_tensor_of_a_device_is_copied_in_blocks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    copied: list[int] = []
    to_host = torch.Tensor.cpu

    def record(tensor: torch.Tensor) -> torch.Tensor:
        copied.append(tensor.numel() * tensor.element_size())
        return to_host(tensor)

    monkeypatch.setattr(torch.Tensor, "cpu", record)
    tensor = torch.randn(1000, 3)
    write_tensors(tmp_path / "a", {"weight": tensor, "empty": torch.zeros(0, 3)}, block_bytes=1 << 10)
    assert max(copied) <= 1 << 10
    assert sum(copied) == 12_000
    assert torch.equal(read_tensors(tmp_path / "a")["weight"], tensor)
