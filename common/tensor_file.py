"""Read and write safetensors files.

Files are written and hashed block by block. Tensors are read whole, by rows, or memory-mapped. The header is
padded so that the first tensor starts at a multiple of 64 bytes.
"""

import hashlib
import json
import math
import os
from collections.abc import Callable, Iterable, Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
import torch
from torch import Tensor
from typing_extensions import TypedDict

from longplay.common.atomic import named_errors
from longplay.common.json_files import JsonFileError, JsonObject, Natural, check_json, parse_json

_BLOCK_BYTES = 8 << 20
_FLUSH_BYTES = 256 << 20
_ALIGNMENT = 64
_LONGEST_HEADER = 100_000_000  # the limit of the format
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
_TYPES = {name: dtype for dtype, name in _TYPE_NAMES.items()}


class TensorFileError(ValueError):
    """A file is not in the safetensors format, is truncated, or has an unexpected dtype or shape."""


class _Entry(TypedDict):
    """A tensor in the header."""

    dtype: Literal["F32", "F64", "F16", "BF16", "I64", "I32", "U8", "BOOL"]
    shape: list[Natural]
    data_offsets: tuple[Natural, Natural]


@dataclass(frozen=True, kw_only=True)
class WrittenFile:
    """Name, size and SHA-256 of a file that has been flushed to disk."""

    name: str
    num_bytes: int
    sha256: str


@dataclass(frozen=True)
class TensorBlocks:
    """A tensor that is produced block by block while it is written.

    Attributes:
        shape: shape of the whole tensor.
        dtype: dtype of the tensor and of each block.
        blocks: consecutive parts of the tensor. Together they have the number of elements of `shape`.
    """

    shape: tuple[int, ...]
    dtype: torch.dtype
    blocks: Iterable[Tensor]


def write_tensors(
    path: Path,
    tensors: Mapping[str, Tensor | TensorBlocks],
    *,
    block_bytes: int = _BLOCK_BYTES,
    flush_bytes: int = _FLUSH_BYTES,
    progress: Callable[[], None] = lambda: None,
) -> WrittenFile:
    """Write `tensors` and wait until they are on disk. They must not change during the call.

    Only one block is copied at a time, so the extra memory does not grow with the tensors.

    Args:
        path: the file to write.
        tensors: tensors by name, on any device.
        block_bytes: bytes hashed and written at a time.
        flush_bytes: bytes between flushes to disk. Flushes run in parallel with writing, so that the last
            one is short.
        progress: called whenever a block is written or flushed.

    Raises:
        OSError: the disk is full, or the file cannot be written; `filename` is `path`.
    """
    digest, num_bytes = hashlib.sha256(), 0
    flushes: list[Future[None]] = []
    with (
        named_errors(path),
        path.open("wb", buffering=0) as file,
        ThreadPoolExecutor(1, "longplay-hash") as hasher,
        ThreadPoolExecutor(1, "longplay-flush") as flusher,
    ):
        for block in _blocks(tensors, block_bytes):
            hashed = hasher.submit(digest.update, block)
            num_bytes += len(block)
            while block:
                block = block[file.write(block) :]
            hashed.result()
            progress()
            if num_bytes >= (len(flushes) + 1) * flush_bytes:
                flushes.append(flusher.submit(os.fdatasync, file.fileno()))
        for flush in flushes:
            flush.result()  # re-raises: the kernel reports a write error once, so the last fsync may succeed
            progress()
        os.fsync(file.fileno())
    return WrittenFile(name=path.name, num_bytes=num_bytes, sha256=digest.hexdigest())


def read_tensors(path: Path) -> dict[str, Tensor]:
    """Return all tensors of a file by name, on the CPU.

    Raises:
        OSError: the file cannot be read.
        TensorFileError: the file is corrupt.
    """
    with TensorFile(path) as file:
        return {name: file.read(name) for name in file.names()}


class TensorFile:
    """An open safetensors file. Use it as a context manager.

    Raises:
        OSError: the file cannot be read.
        TensorFileError: the header is corrupt, or the file does not have the size that the header implies.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._file = path.open("rb", buffering=0)
        try:
            self._entries, self._data_begin = self._read_header()
        except BaseException:
            self._file.close()
            raise

    def names(self) -> list[str]:
        """Return the names of the tensors in file order."""
        return list(self._entries)

    def shape(self, name: str) -> tuple[int, ...]:
        """Return the shape of a tensor."""
        return tuple(self._entries[name]["shape"])

    def num_elements(self, prefix: str = "") -> int:
        """Return the number of elements of all tensors whose names begin with `prefix`."""
        names = (name for name in self._entries if name.startswith(prefix))
        return sum(math.prod(self._entries[name]["shape"]) for name in names)

    def read(self, name: str) -> Tensor:
        """Return a whole tensor on the CPU."""
        dtype = _TYPES[self._entries[name]["dtype"]]
        out = torch.empty(self.shape(name), dtype=dtype)
        self._fill(_bytes_of(out), self._begin(name))
        return out

    def read_rows(
        self, name: str, start: int, out: Tensor, progress: Callable[[], None] = lambda: None
    ) -> None:
        """Read rows [start, start + n) of a tensor into `out`.

        Args:
            name: name of the tensor.
            start: first row to read.
            out: (n, ...), on any device, with the tensor's dtype and row shape.
            progress: called after each block.

        Raises:
            TensorFileError: the tensor has another dtype or row shape, or the file is truncated.
        """
        entry = self._entries[name]
        if entry["dtype"] != _TYPE_NAMES[out.dtype] or entry["shape"][1:] != list(out.shape[1:]):
            found, expected = f"{entry['dtype']} {entry['shape']}", f"{out.dtype} {tuple(out.shape)}"
            raise TensorFileError(f"{self.path}: {name} is {found}, expected {expected}")
        row_bytes = out[0].numel() * out.element_size() if len(out) else 0
        rows_at_once = max(1, _BLOCK_BYTES // max(1, row_bytes))
        at = self._begin(name) + start * row_bytes
        for begin in range(0, len(out), rows_at_once):
            part = out[begin : begin + rows_at_once]
            direct = part.device.type == "cpu" and part.is_contiguous()
            buffer = part if direct else torch.empty(part.shape, dtype=part.dtype)
            at += self._fill(_bytes_of(buffer), at)
            if not direct:
                part.copy_(buffer)
            progress()

    def map(self, name: str) -> Tensor:
        """Memory-map a tensor. Pages are read on first access.

        Processes on one host share the pages. Writes to the tensor are private to this process.
        """
        begin, end = self._entries[name]["data_offsets"]
        if begin == end:  # an empty range cannot be mapped
            return self.read(name)
        # Copy-on-write ("c") instead of read-only, because torch warns about read-only arrays.
        mapped = np.memmap(self.path, np.uint8, "c", offset=self._data_begin + begin, shape=(end - begin,))
        return torch.from_numpy(mapped).view(_TYPES[self._entries[name]["dtype"]]).view(self.shape(name))

    def __enter__(self) -> "TensorFile":
        return self

    def __exit__(self, *_: object) -> None:
        self._file.close()

    def _read_header(self) -> tuple[dict[str, "_Entry"], int]:
        """Return the header entries by tensor name and the offset of the data in bytes."""
        size = os.fstat(self._file.fileno()).st_size
        length = int.from_bytes(self._file.read(8), "little")
        if not 0 < length <= min(_LONGEST_HEADER, size - 8):
            raise TensorFileError(f"{self.path}: invalid header (length {length})")
        try:
            saved = parse_json(self._file.read(length), JsonObject, self.path)
            saved.pop("__metadata__", None)
            entries = check_json(saved, dict[str, _Entry], self.path)
        except JsonFileError as error:
            raise TensorFileError(f"{error}: invalid header") from None
        last = 0
        for name, entry in entries.items():
            begin, end = entry["data_offsets"]
            if end - begin != _TYPES[entry["dtype"]].itemsize * math.prod(entry["shape"]):
                raise TensorFileError(
                    f"{self.path}: invalid header ({name} has {end - begin} bytes, which do not match shape "
                    f"{entry['shape']})"
                )
            last = max(last, end)
        if size != 8 + length + last:
            raise TensorFileError(f"{self.path}: size is {size} bytes, expected {8 + length + last}")
        return entries, 8 + length

    def _begin(self, name: str) -> int:
        return self._data_begin + self._entries[name]["data_offsets"][0]

    def _fill(self, view: memoryview, at: int) -> int:
        """Fill `view` with the bytes at offset `at` and return their number."""
        done = 0
        while done < len(view):
            num_read = os.preadv(self._file.fileno(), [view[done:]], at + done)
            if num_read == 0:
                raise TensorFileError(f"{self.path}: the file is truncated")
            done += num_read
        return done


def _header(tensors: Mapping[str, Tensor | TensorBlocks]) -> bytes:
    """Return the header of a file: its length and its JSON."""
    described: dict[str, object] = {"__metadata__": {"format": "pt"}}
    begin = 0
    for name, tensor in tensors.items():
        shape = list(tensor.shape)
        num_elements = int(np.prod(shape, dtype=np.int64))
        end = begin + num_elements * torch.empty((), dtype=tensor.dtype).element_size()
        described[name] = {"dtype": _TYPE_NAMES[tensor.dtype], "shape": shape, "data_offsets": [begin, end]}
        begin = end
    text = json.dumps(described).encode()
    text += b" " * (-(8 + len(text)) % _ALIGNMENT)
    return len(text).to_bytes(8, "little") + text


def _blocks(tensors: Mapping[str, Tensor | TensorBlocks], block_bytes: int) -> Iterator[memoryview]:
    """Yield the content of a file in order, in blocks of at most `block_bytes` after the header.

    A tensor on a GPU is copied to the host block by block.
    """
    yield memoryview(_header(tensors))
    for tensor in tensors.values():
        for part in tensor.blocks if isinstance(tensor, TensorBlocks) else [tensor]:
            flat = part.detach().contiguous().view(-1)
            for piece in flat.split(max(1, block_bytes // flat.element_size())):
                content = _bytes_of(piece.cpu())
                for begin in range(0, len(content), block_bytes):
                    yield content[begin : begin + block_bytes]


def _bytes_of(tensor: Tensor) -> memoryview:
    """Return the bytes of a contiguous CPU tensor without copying."""
    return tensor.view(-1).view(torch.uint8).numpy().data
