"""Tensors as a safetensors file, written in blocks and hashed on the way."""

import hashlib
import json
import os
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

_BLOCK_BYTES = 8 << 20
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
    with path.open("wb", buffering=0) as file:
        for block in _blocks(len(text).to_bytes(8, "little") + text, tensors):
            digest.update(block)
            num_bytes += len(block)
            while block:
                block = block[file.write(block) :]
        os.fsync(file.fileno())
    return WrittenFile(name=path.name, num_bytes=num_bytes, sha256=digest.hexdigest())


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
