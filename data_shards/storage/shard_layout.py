"""The byte layout of a shard: a ustar archive with two .npy arrays per user, and the offset of each array.

The bytes equal those of `tarfile` and `numpy.lib.format`. Longplay writes them itself, so that they do not
depend on the versions of Python and NumPy, and so that short sequences are fast to write and read.
"""

from __future__ import annotations

import functools
import hashlib
import os
from pathlib import Path
from types import TracebackType

import numpy as np

from longplay.common.atomic import temporary_name
from longplay.data_shards.storage.manifest import ShardInfo

ITEMS_SUFFIX = "items.npy"
TIMES_SUFFIX = "times.npy"
ITEMS_DTYPE = np.dtype("<i4")
TIMES_DTYPE = np.dtype("<i8")
BLOCK_BYTES = 512
RECORD_BYTES = 20 * BLOCK_BYTES
"""An archive ends with at least two blocks of zeros, up to a multiple of this size."""
ARRAY_HEADER_BYTES = 128
"""Size of the .npy header of a one-dimensional array of any length."""
MAX_MEMBER_BYTES = 8**11 - 1
"""Largest size that fits into ustar's size field of eleven octal digits."""

_KEY_BYTES = 10
_MODE_AND_OWNER = b"0000644\0" + 2 * b"0000000\0"
_TIME = b"00000000000\0"
_AFTER_CHECKSUM = (b"0" + bytes(100) + b"ustar\x0000").ljust(BLOCK_BYTES - 156, b"\0")
FLUSH_BYTES = 8 << 20


def sample_key(user_index: int) -> str:
    """Return the key of a user's sample in its shard."""
    return f"{user_index:010d}"


def sample_bytes(user_index: int, items: np.ndarray, times: np.ndarray) -> list[bytes | memoryview]:
    """Return the two archive members of one user in pieces, without copying the arrays.

    Args:
        user_index: index of the user in the dataset.
        items: (events,) int32, or a type that converts to it.
        times: (events,) int64, or a type that converts to it.
    """
    key = b"%010d" % user_index
    key_sum, pieces = sum(key), []
    for suffix, dtype, values in ((ITEMS_SUFFIX, ITEMS_DTYPE, items), (TIMES_SUFFIX, TIMES_DTYPE, times)):
        before, checksum, after, padding = _frame(suffix, dtype, len(values))
        content = np.ascontiguousarray(values, dtype)
        pieces += (
            b"%b%b%06o\0 %b" % (key, before, checksum + key_sum, after),
            content.data.cast("B"),
            padding,
        )
    return pieces


def end_of_archive(num_bytes: int) -> bytes:
    """Return the end of an archive whose members take `num_bytes`."""
    return bytes(2 * BLOCK_BYTES + -(num_bytes + 2 * BLOCK_BYTES) % RECORD_BYTES)


def array_offsets(lengths: np.ndarray) -> tuple[np.ndarray, np.ndarray, int]:
    """Return the offsets of the arrays of a shard.

    Args:
        lengths: (users,) number of events of each user, in the order of writing.

    Returns:
        (users,) int64 byte offset of each user's items, the same for the times, and the size of the whole
        shard. Offsets of items are multiples of 4, those of times multiples of 8.
    """
    lengths = np.asarray(lengths, np.int64)
    before = BLOCK_BYTES + ARRAY_HEADER_BYTES
    items_bytes = BLOCK_BYTES + _whole_blocks(ARRAY_HEADER_BYTES + ITEMS_DTYPE.itemsize * lengths)
    times_bytes = BLOCK_BYTES + _whole_blocks(ARRAY_HEADER_BYTES + TIMES_DTYPE.itemsize * lengths)
    ends = np.cumsum(items_bytes + times_bytes)
    begins = ends - items_bytes - times_bytes
    members = int(ends[-1]) if len(ends) else 0
    return begins + before, begins + items_bytes + before, members + len(end_of_archive(members))


def read_headers(content: np.ndarray, begins: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Parse the ustar headers of some members of a shard.

    Args:
        content: (bytes,) uint8, the shard.
        begins: (N,) byte offset of each member.

    Returns:
        (N,) int64 user index, and (N,) int64 size of the member in bytes; -1 for a field that is not a
        number.
    """
    words = content.reshape(-1, BLOCK_BYTES)[begins // BLOCK_BYTES]
    return _parse_digits(words[:, :_KEY_BYTES], 10), _parse_digits(words[:, 124:135], 8)


def _parse_digits(digits: np.ndarray, base: int) -> np.ndarray:
    """Parse each row of (N, digits) ASCII digits as an int64; return -1 for a row with other characters."""
    values = digits.astype(np.int64) - ord("0")
    valid = ((values >= 0) & (values < base)).all(axis=1)
    powers = np.int64(base) ** np.arange(digits.shape[1] - 1, -1, -1)
    return np.where(valid, values @ powers, -1)


class ShardWriter:
    """Context manager that writes one shard under a temporary name; `close()` renames it.

    Leaving the context without `close()`, or with an exception, removes the temporary file.

    Args:
        path: path of the finished shard.
    """

    def __init__(self, path: Path) -> None:
        self.path, self.partial = path, temporary_name(path)
        self._file = self.partial.open("wb", buffering=0)
        self._sha256 = hashlib.sha256()
        self._pending: list[bytes | memoryview] = []
        self._num_pending = self._num_bytes = self._num_samples = self._num_events = 0

    def add(self, user_index: int, items: np.ndarray, times: np.ndarray) -> None:
        """Append one user. The arrays must not change before `close()`.

        Args:
            user_index: index of the user in the dataset.
            items: (events,) int32, or a type that converts to it.
            times: (events,) int64, or a type that converts to it.
        """
        assert len(items) == len(times), f"{len(items)} items, {len(times)} times"
        pieces = sample_bytes(user_index, items, times)
        self._pending += pieces
        self._num_pending += sum(map(len, pieces))
        self._num_samples += 1
        self._num_events += len(items)
        if self._num_pending >= FLUSH_BYTES:
            self._flush()

    def close(self) -> ShardInfo:
        """Finish the archive, rename it to `path` and return its entry for the manifest."""
        self._pending.append(end_of_archive(self._num_bytes + self._num_pending))
        self._flush()
        self._file.close()
        os.replace(self.partial, self.path)
        return ShardInfo(
            name=self.path.name,
            num_samples=self._num_samples,
            num_events=self._num_events,
            num_bytes=self._num_bytes,
            sha256=self._sha256.hexdigest(),
        )

    def abort(self) -> None:
        """Remove the temporary file."""
        self._file.close()
        self.partial.unlink(missing_ok=True)

    def __enter__(self) -> ShardWriter:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.abort()

    def _flush(self) -> None:
        block = memoryview(b"".join(self._pending))
        self._pending.clear()
        self._num_pending = 0
        self._num_bytes += len(block)
        self._sha256.update(block)
        while block:
            block = block[self._file.write(block) :]


@functools.lru_cache(maxsize=1 << 16)
def _frame(suffix: str, dtype: np.dtype, length: int) -> tuple[bytes, int, bytes, bytes]:
    """Return the bytes around an array of `length` values, without the user's key.

    Returns:
        The ustar header between key and checksum; the checksum without the bytes of the key; the rest of the
        ustar header and the .npy header; the zeros after the array.
    """
    num_bytes = ARRAY_HEADER_BYTES + length * dtype.itemsize
    if num_bytes > MAX_MEMBER_BYTES:
        raise ValueError(
            f"{length} events of one user exceed the {MAX_MEMBER_BYTES} bytes of a shard member; "
            "limit histories with --max-user-events"
        )
    before = (
        f".{suffix}".encode().ljust(100 - _KEY_BYTES, b"\0")
        + _MODE_AND_OWNER
        + b"%011o\0" % num_bytes
        + _TIME
    )
    checksum = sum(before) + 8 * ord(" ") + sum(_AFTER_CHECKSUM)
    return (
        before,
        checksum,
        _AFTER_CHECKSUM + _array_header(dtype.str, length),
        bytes(-num_bytes % BLOCK_BYTES),
    )


def _array_header(descr: str, length: int) -> bytes:
    """Return the header of a one-dimensional array in .npy format 1.0."""
    text = f"{{'descr': '{descr}', 'fortran_order': False, 'shape': ({length},), }}"
    start = b"\x93NUMPY\x01\0" + (ARRAY_HEADER_BYTES - 10).to_bytes(2, "little")
    return (start + text.encode()).ljust(ARRAY_HEADER_BYTES - 1) + b"\n"


def _whole_blocks(num_bytes: np.ndarray) -> np.ndarray:
    return -(-num_bytes // BLOCK_BYTES) * BLOCK_BYTES
