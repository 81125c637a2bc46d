"""Checksums of files."""

import hashlib
from pathlib import Path

_BLOCK_BYTES = 8 << 20


def sha256_of(path: Path) -> str:
    """Return the sha256 of a file's content in hexadecimal; memory use does not depend on the file's size.

    Raises:
        OSError: the file cannot be read.
    """
    digest = hashlib.sha256()
    block = memoryview(bytearray(_BLOCK_BYTES))
    with path.open("rb", buffering=0) as file:
        while num_read := file.readinto(block):
            digest.update(block[:num_read])
    return digest.hexdigest()
