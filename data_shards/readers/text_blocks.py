"""Read plain or compressed text files in blocks of whole lines, without holding a file in memory."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa

from longplay.data_shards.errors import DataError

_MAGIC = {b"\x1f\x8b": "gzip", b"\x28\xb5\x2f\xfd": "zstd", b"BZh": "bz2"}
_BYTE_ORDER_MARK = b"\xef\xbb\xbf"
_LONGEST_LINE = 1 << 24
_PROBE_BYTES = 1 << 16
MAX_INFLATION = 8
"""Assumed compression ratio, for estimates of sizes."""


def file_identity(path: Path) -> list[Any]:
    """Return the path, size and modification time of a file, which change when it is replaced.

    Raises:
        DataError: the file does not exist or cannot be read.
    """
    try:
        stat = path.stat()
    except FileNotFoundError:
        raise DataError(f"{path}: no such file; check the path") from None
    except OSError as error:
        raise DataError(f"{path}: cannot be read ({error.strerror}); check its permissions") from error
    return [str(path.resolve()), stat.st_size, stat.st_mtime_ns]


@dataclass(frozen=True)
class TextBlock:
    """Whole lines of a file.

    Attributes:
        path: the file.
        begin, end: byte range in a plain file. The last line may lack its line break.
        weight: bytes that the block takes in the file on disk.
        data: the decompressed lines of a compressed file.
    """

    path: Path
    begin: int
    end: int
    weight: int
    data: bytes | None = None

    def read(self) -> bytes:
        """Return the lines."""
        if self.data is not None:
            return self.data
        with reading(self.path), self.path.open("rb") as file:
            file.seek(self.begin)
            return file.read(self.end - self.begin)


@dataclass(frozen=True)
class TextFile:
    """A text file that exists and is not empty. Its first bytes show whether it is gzip, zstd or bzip2."""

    path: Path
    num_bytes: int
    compression: str | None

    @classmethod
    def open(cls, path: Path) -> TextFile:
        """Open a file to detect its compression.

        Raises:
            DataError: the file is missing, unreadable or empty.
        """
        if path.is_dir():
            raise DataError(f"{path}: is a folder; give the path of the file to read")
        with reading(path), path.open("rb") as file:
            start = file.read(8)
            num_bytes = os.fstat(file.fileno()).st_size
        if not start:
            raise DataError(f"{path}: is empty; pass a file with events")
        if start.startswith(b"PAR1"):
            raise DataError(f"{path}: is a Parquet file; read it with `longplay prepare parquet {path}`")
        kinds = [kind for magic, kind in _MAGIC.items() if start.startswith(magic)]
        return cls(path, num_bytes, kinds[0] if kinds else None)

    def max_text_bytes(self) -> int:
        """Return an upper estimate of the bytes of text in the file."""
        return self.num_bytes * (MAX_INFLATION if self.compression else 1)

    def first_line(self) -> bytes:
        """Return the first line with its line break."""
        with reading(self.path), self._stream() as stream:
            line = b""
            while b"\n" not in line and (more := stream.read(_PROBE_BYTES)):
                line += more
                self._check_length(len(line) if b"\n" not in line else 0)
        if not line:
            raise DataError(f"{self.path}: is empty; pass a file with events")
        end = line.find(b"\n") + 1
        return line[:end] if end else line

    def blocks(self, block_bytes: int, *, skip_header: bool) -> Iterator[TextBlock]:
        """Yield the lines in blocks of at least `block_bytes`, each extended to the end of its last line.

        Args:
            block_bytes: size of a block.
            skip_header: leave out the first line.

        Raises:
            DataError: the file is damaged or is not text.
        """
        first = self.first_line()
        mark = len(_BYTE_ORDER_MARK) if first.startswith(_BYTE_ORDER_MARK) else 0
        begin = len(first) if skip_header else mark
        return self._inflated(block_bytes, begin) if self.compression else self._plain(block_bytes, begin)

    def _plain(self, block_bytes: int, begin: int) -> Iterator[TextBlock]:
        weighed = 0
        with reading(self.path), self.path.open("rb") as file:
            while begin < self.num_bytes:
                end = min(begin + block_bytes, self.num_bytes)
                if end < self.num_bytes:
                    file.seek(end - 1)
                    end += self._rest_of_line(file) - 1
                yield TextBlock(self.path, begin, end, end - weighed)
                begin = weighed = end

    def _rest_of_line(self, file: Any) -> int:
        """Return the number of bytes up to the end of the line, including its line break."""
        line = file.readline(_LONGEST_LINE)
        self._check_length(0 if line.endswith(b"\n") else len(line))
        return len(line)

    def _inflated(self, block_bytes: int, skipped: int) -> Iterator[TextBlock]:
        weighed, rest = 0, b""
        with reading(self.path), pa.OSFile(str(self.path)) as raw:
            with pa.CompressedInputStream(raw, self.compression) as stream:
                while more := stream.read(block_bytes):
                    data = rest + more
                    cut = data.rfind(b"\n") + 1
                    self._check_length(0 if cut else len(data))
                    rest = data[cut:]
                    at = raw.tell()
                    if cut > skipped:
                        yield TextBlock(self.path, 0, 0, at - weighed, data[skipped:cut])
                        weighed = at
                    skipped = max(0, skipped - cut)
        if rest[skipped:]:
            yield TextBlock(self.path, 0, 0, self.num_bytes - weighed, rest[skipped:])

    def _stream(self) -> Any:
        return pa.input_stream(str(self.path), compression=self.compression)

    def _check_length(self, line_bytes: int) -> None:
        if line_bytes >= _LONGEST_LINE:
            raise DataError(
                f"{self.path}: cannot be read as text (no line break within {_LONGEST_LINE >> 20} MiB); "
                "check that it is complete and consists of lines"
            )


@contextmanager
def reading(path: Path) -> Iterator[None]:
    """Turn an error while reading a file into one line.

    Raises:
        DataError: the file cannot be read.
    """
    try:
        yield
    except FileNotFoundError:
        raise DataError(f"{path}: no such file; check the path") from None
    except (OSError, pa.ArrowException) as error:
        cause = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise DataError(f"{path}: cannot be read as text ({cause}); check that it is complete") from error
