"""SHA-256 of files shorter and longer than a block."""

import hashlib
from pathlib import Path

import pytest

from longplay.common.checksums import sha256_of


@pytest.mark.parametrize("size", [0, 1, 8 << 20, (8 << 20) + 1])
def test_sha256_equals_hashlib(tmp_path: Path, size: int) -> None:
    content = bytes(range(256)) * (size // 256) + bytes(size % 256)
    (tmp_path / "file").write_bytes(content)
    assert sha256_of(tmp_path / "file") == hashlib.sha256(content).hexdigest()
