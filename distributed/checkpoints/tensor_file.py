"""Tensors as a safetensors file, written in blocks, each hashed while it is written."""

import hashlib
import json
import os
from collections.abc import Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

_BLOCK_BYTES = 8 << 20
_FLUSH_BYTES = 256 << 20  # as often the disk is told to take what there is, so that the end comes soon
_TYPE_NAMES = {
    torch.float32: "F32",
    torch.float64: "F64",
    torch.float16: "F16",
    torch.bfloat16: "BF16",
    torch.int64: "I64",
    torch.int32: "I32",
    torch.uint8: "U8",
    torch.bool: "BOOL",
}


@dataclass(frozen=True, kw_only=True)
class WrittenFile:
    """A file that is on disk: its name, length and checksum."""

    name: str
    num_bytes: int
    sha256: str


def write_tensors(path: Path, tensors: Mapping[str, Tensor]) -> WrittenFile:
    """Write `tensors`, which no longer may change, and wait until the disk has them.

    Nothing is copied but a block at a time, so tensors may be as large as memory.

    Raises:
        OSError: the disk is full, or the file cannot be written.
    """
    header, begin = {}, 0
    for name, tensor in tensors.items():
        end = begin + tensor.numel() * tensor.element_size()
        shape = list(tensor.shape)
        header[name] = {"dtype": _TYPE_NAMES[tensor.dtype], "shape": shape, "data_offsets": [begin, end]}
        begin = end
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    digest, num_bytes = hashlib.sha256(), 0
    flushes: list[Future[None]] = []
    with (
        path.open("wb", buffering=0) as file,
        ThreadPoolExecutor(1, "longplay-hash") as hasher,
        ThreadPoolExecutor(1, "longplay-flush") as flusher,
    ):
        for block in _blocks(len(text).to_bytes(8, "little") + text, tensors):
            hashed = hasher.submit(digest.update, block)
            num_bytes += len(block)
            while block:
                block = block[file.write(block) :]
            hashed.result()
            if num_bytes >= (len(flushes) + 1) * _FLUSH_BYTES:
                flushes.append(flusher.submit(os.fdatasync, file.fileno()))
        for flush in flushes:
            flush.result()  # a failure is told to one flush alone
        os.fsync(file.fileno())
    return WrittenFile(name=path.name, num_bytes=num_bytes, sha256=digest.hexdigest())


class TensorFile:
    """An open safetensors file of which parts are read straight into tensors; nothing is mapped or cached.

    Raises:
        OSError, ValueError: it cannot be read, or is no such file.
    """

    def __init__(self, path: Path) -> None:
        self._file = path.open("rb", buffering=0)
        length = int.from_bytes(self._file.read(8), "little")
        if not 0 < length < os.fstat(self._file.fileno()).st_size:
            raise ValueError(f"{path}: is no safetensors file")
        self._header = json.loads(self._file.read(length))
        self._data_begin = 8 + length

    def names(self) -> set[str]:
        """The tensors in it."""
        return set(self._header) - {"__metadata__"}

    def read_rows(self, name: str, start: int, out: Tensor) -> None:
        """Fill `out` (n, ...), on any device, with rows [start, start + n) of a tensor of the same type."""
        entry = self._header[name]
        if entry["dtype"] != _TYPE_NAMES[out.dtype] or entry["shape"][1:] != list(out.shape[1:]):
            raise ValueError(
                f"{name} holds {entry['dtype']} {entry['shape']}, not {out.dtype} {tuple(out.shape)}"
            )
        row_bytes = out[0].numel() * out.element_size() if len(out) else 0
        rows_at_once = max(1, _BLOCK_BYTES // max(1, row_bytes))
        at = self._data_begin + entry["data_offsets"][0] + start * row_bytes
        for begin in range(0, len(out), rows_at_once):
            part = out[begin : begin + rows_at_once]
            direct = part.device.type == "cpu" and part.is_contiguous()
            buffer = part if direct else torch.empty(part.shape, dtype=part.dtype)
            at += self._fill(buffer.view(-1).view(torch.uint8).numpy().data, at)
            if not direct:
                part.copy_(buffer)

    def _fill(self, view: memoryview, at: int) -> int:
        done = 0
        while done < len(view):
            num_read = os.preadv(self._file.fileno(), [view[done:]], at + done)
            if num_read == 0:
                raise ValueError("the file is cut short")
            done += num_read
        return done

    def __enter__(self) -> "TensorFile":
        return self

    def __exit__(self, *_: object) -> None:
        self._file.close()


def sha256_of(path: Path) -> str:
    """The checksum of a file, read in blocks.

    Raises:
        OSError: it cannot be read.
    """
    digest = hashlib.sha256()
    with path.open("rb", buffering=0) as file:
        while block := file.read(_BLOCK_BYTES):
            digest.update(block)
    return digest.hexdigest()


def _blocks(header: bytes, tensors: Mapping[str, Tensor]) -> Iterator[memoryview]:
    yield memoryview(header)
    for tensor in tensors.values():
        flat = tensor.detach().cpu().contiguous().view(-1).view(torch.uint8)
        for begin in range(0, flat.numel(), _BLOCK_BYTES):
            yield flat[begin : begin + _BLOCK_BYTES].numpy().data
