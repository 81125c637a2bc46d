"""Checksums of files."""

import hashlib
from collections.abc import Callable
from pathlib import Path

from typing_extensions import TypedDict

from longplay.common.json_files import Natural

_BLOCK_BYTES = 8 << 20


class FileInfo(TypedDict):
    """A file's size and SHA-256, as the JSON files that list it record them."""

    bytes: Natural
    sha256: str


def sha256_of(path: Path, progress: Callable[[], None] = lambda: None) -> str:
    """Return the SHA-256 of a file's content in hexadecimal, reading it in blocks of constant size.

    Args:
        progress: called after each block.

    Raises:
        OSError: the file cannot be read.
    """
    digest = hashlib.sha256()
    block = memoryview(bytearray(_BLOCK_BYTES))
    with path.open("rb", buffering=0) as file:
        while num_read := file.readinto(block):
            digest.update(block[:num_read])
            progress()
    return digest.hexdigest()
