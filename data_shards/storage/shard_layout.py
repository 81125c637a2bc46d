"""The bytes of a shard: a ustar archive of two .npy arrays per user, and where in it each array lies.

These are the bytes that `tarfile` and `numpy.lib.format` write, made without either, so that they stay the
same whatever the versions of Python and NumPy, and so that short sequences are written and read at speed.
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
"""An archive is padded with zeros to a multiple of this, after two blocks of them at least."""
ARRAY_HEADER_BYTES = 128
"""A one-dimensional array's .npy header, whatever its length."""
MAX_MEMBER_BYTES = 8**11 - 1
"""What the eleven octal digits of a ustar size hold."""

_KEY_BYTES = 10
_MODE_AND_OWNER = b"0000644\0" + 2 * b"0000000\0"
_TIME = b"00000000000\0"
_AFTER_CHECKSUM = (b"0" + bytes(100) + b"ustar\x0000").ljust(BLOCK_BYTES - 156, b"\0")
_FLUSH_BYTES = 8 << 20


def sample_key(user_index: int) -> str:
    """The name of a user's sample within its shard."""
    return f"{user_index:010d}"


def sample_bytes(user_index: int, items: np.ndarray, times: np.ndarray) -> list[bytes | memoryview]:
    """The two members of one user, in the pieces they are written in; the arrays are not copied.

    Args:
        items: (events,) int32, or what converts to it.
        times: (events,) int64, or what converts to it.
    """
    key = b"%010d" % user_index
    key_sum, pieces = sum(key), []
    for suffix, dtype, values in ((ITEMS_SUFFIX, ITEMS_DTYPE, items), (TIMES_SUFFIX, TIMES_DTYPE, times)):
        content = np.ascontiguousarray(values, dtype)
        before, checksum, after, padding = _frame(suffix, dtype, len(content))
        pieces += (
            b"%b%b%06o\0 %b" % (key, before, checksum + key_sum, after),
            content.data.cast("B"),
            padding,
        )
    return pieces


def end_of_archive(num_bytes: int) -> bytes:
    """What ends an archive whose members take `num_bytes`."""
    return bytes(2 * BLOCK_BYTES + -(num_bytes + 2 * BLOCK_BYTES) % RECORD_BYTES)


def array_offsets(lengths: np.ndarray) -> tuple[np.ndarray, np.ndarray, int]:
    """Where the arrays of a shard lie.

    Args:
        lengths: (users,) events of each user, in the order they are written.

    Returns:
        (users,) int64 byte at which each user's items begin, the same for the times, and the bytes of the
        whole shard, its end included. Items lie at multiples of 4 and times at multiples of 8.
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
    """What the headers of a shard's members say.

    Args:
        content: (bytes,) uint8.
        begins: (N,) where each member begins.

    Returns:
        (N,) int64 user index, and (N,) int64 size of the member in bytes; -1 where it is not a number.
    """
    words = content.reshape(-1, BLOCK_BYTES)[begins // BLOCK_BYTES]
    return _number(words[:, :_KEY_BYTES], 10), _number(words[:, 124:135], 8)


def _number(digits: np.ndarray, base: int) -> np.ndarray:
    """(N,) the numbers written as rows of ASCII digits."""
    values = digits.astype(np.int64) - ord("0")
    written = ((values >= 0) & (values < base)).all(axis=1)
    powers = np.int64(base) ** np.arange(digits.shape[1] - 1, -1, -1)
    return np.where(written, values @ powers, -1)


class ShardWriter:
    """Writes one shard under a temporary name and renames it when it is whole; a context manager.

    Leaving the context without `close()`, or by an exception, removes the temporary file.

    Args:
        path: the shard's final place; until `close()` its bytes go to a temporary name beside it.
    """

    def __init__(self, path: Path) -> None:
        self.path, self.partial = path, temporary_name(path)
        self._file = self.partial.open("wb", buffering=0)
        self._sha256 = hashlib.sha256()
        self._waiting: list[bytes | memoryview] = []
        self._num_waiting = self._num_bytes = self._num_samples = self._num_events = 0

    def add(self, user_index: int, items: np.ndarray, times: np.ndarray) -> None:
        """Appends one user; the arrays must not change before `close()`.

        Args:
            items: (events,) int32, or what converts to it.
            times: (events,) int64, or what converts to it.
        """
        assert len(items) == len(times), f"{len(items)} items, {len(times)} times"
        pieces = sample_bytes(user_index, items, times)
        self._waiting += pieces
        self._num_waiting += sum(map(len, pieces))
        self._num_samples += 1
        self._num_events += len(items)
        if self._num_waiting >= _FLUSH_BYTES:
            self._flush()

    def close(self) -> ShardInfo:
        """Ends the archive and puts it in its place; what the manifest says about it."""
        self._waiting.append(end_of_archive(self._num_bytes + self._num_waiting))
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
        """Gives up: removes the temporary file."""
        self._file.close()
        self.partial.unlink(missing_ok=True)

    def __enter__(self) -> ShardWriter:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.abort()

    def _flush(self) -> None:
        block = memoryview(b"".join(self._waiting))
        self._waiting.clear()
        self._num_waiting = 0
        self._num_bytes += len(block)
        self._sha256.update(block)
        while block:
            block = block[self._file.write(block) :]


@functools.lru_cache(maxsize=1 << 16)
def _frame(suffix: str, dtype: np.dtype, length: int) -> tuple[bytes, int, bytes, bytes]:
    """What stands around an array of `length` values, its user's key left out.

    Returns:
        The ustar header between key and checksum, the checksum less the key's bytes, the rest of the ustar
        header and the .npy header, and the zeros after the array.
    """
    num_bytes = ARRAY_HEADER_BYTES + length * dtype.itemsize
    if num_bytes > MAX_MEMBER_BYTES:
        raise ValueError(
            f"{length} events of one user: a member of a shard has at most {MAX_MEMBER_BYTES} bytes"
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
    """The header of a one-dimensional array in .npy format 1.0."""
    text = f"{{'descr': '{descr}', 'fortran_order': False, 'shape': ({length},), }}"
    start = b"\x93NUMPY\x01\0" + (ARRAY_HEADER_BYTES - 10).to_bytes(2, "little")
    return (start + text.encode()).ljust(ARRAY_HEADER_BYTES - 1) + b"\n"


def _whole_blocks(num_bytes: np.ndarray) -> np.ndarray:
    return -(-num_bytes // BLOCK_BYTES) * BLOCK_BYTES
