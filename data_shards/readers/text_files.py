"""Read plain, compressed or archived text in blocks of whole lines, without holding a file in memory."""

from __future__ import annotations

import fnmatch
import lzma
import os
import tarfile
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa

from longplay.data_shards.errors import DataError
from longplay.data_shards.readers.inputs import reading
from longplay.data_shards.readers.text_lines import BYTE_ORDER_MARK, count_lines

_MAGIC = {
    b"\x1f\x8b": "gzip",
    b"\x28\xb5\x2f\xfd": "zstd",
    b"BZh": "bz2",
    b"\xfd7zXZ\x00": "xz",
    b"PK\x03\x04": "zip",
    b"PK\x05\x06": "zip",
}
_SKIPPABLE_ZSTD = b"\x2a\x4d\x18"  # follows a byte 0x50..0x5f, as pzstd writes it
_UTF_16 = b"\xff\xfe"
_FOREIGN = {
    b"PAR1": "a Parquet file; read it with `longplay prepare parquet {path}`",
    b"7z\xbc\xaf": "a 7z archive; unpack it",
    b"Rar!": "a RAR archive; unpack it",
    b"\x1f\x9d": "compressed by `compress`; unpack it",
    b"SQLite format 3": "an SQLite database; export a table as CSV",
    b"\x89HDF": "an HDF5 file; export a table as CSV or Parquet",
    b"ARROW1": "an Arrow file; write it as Parquet",
    b"\x93NUMPY": "a NumPy array; write it as CSV or Parquet",
    b"\x80\x04\x95": "a pickle; write it as CSV or Parquet",
    b"version https://git-lfs": "a pointer of Git LFS; fetch the file with `git lfs pull`",
    b"<!DOCTYPE html": "an HTML page; download the file again",
    b"<html": "an HTML page; download the file again",
    _UTF_16: "UTF-16 text; convert it with `iconv -f UTF-16 -t UTF-8 {path}`",
    b"\xfe\xff": "UTF-16 text; convert it with `iconv -f UTF-16 -t UTF-8 {path}`",
}
_LONGEST_LINE = 1 << 24
_PROBE_BYTES = 1 << 16
_ENCRYPTED = 1  # bit of a member's flags in a zip archive
_TAR_MAGIC = slice(257, 262)
_HEAD_BYTES = 1 << 20
_SAFETY = 1.5  # later lines may be shorter than the first ones by this factor
_MAX_INFLATION = 8
"""Assumed compression ratio, for estimates of sizes."""


@dataclass(frozen=True)
class TextBlock:
    """Whole lines of a file.

    Attributes:
        path: the file.
        begin, end: byte range in a plain file, 0 in a compressed one. The last line may lack its line break.
        weight: bytes that the block takes in the file on disk; estimated if it is compressed.
        data: the decompressed lines of a compressed file; None for a plain file.
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
        with reading(self.path, "text"), self.path.open("rb") as file:
            file.seek(self.begin)
            return file.read(self.end - self.begin)


@dataclass(frozen=True)
class TextFile:
    """A text file that exists and is not empty. Its packing is detected from its first bytes, not its name.

    Attributes:
        path: the file.
        num_bytes: its size on disk.
        packing: `gzip`, `zstd`, `bz2`, `xz`, `zip`, `tar`, or None for plain text.
        member: file name pattern of the archive member to read.
    """

    path: Path
    num_bytes: int
    packing: str | None
    member: str = "*"

    @classmethod
    def open(cls, path: Path, member: str = "*") -> TextFile:
        """Open a file to find out how it is packed.

        Raises:
            DataError: the file is missing, unreadable, empty or not text.
        """
        with reading(path, "text"):
            with path.open("rb") as file:
                start = file.read(512)
                num_bytes = os.fstat(file.fileno()).st_size
            if not start:
                raise DataError(f"{path}: is empty; pass a file with events")
            packing = next((kind for magic, kind in _MAGIC.items() if start.startswith(magic)), None)
            if start[1:4] == _SKIPPABLE_ZSTD and 0x50 <= start[0] <= 0x5F:
                packing = "zstd"
            if packing != "zip" and tarfile.is_tarfile(path):
                packing = "tar"
            opened = cls(path, num_bytes, packing, member)
            with opened._stream() as stream:
                start = stream.read(512)
            _check_is_text(path, start)
            if packing is not None and (start.startswith(tuple(_MAGIC)) or start[_TAR_MAGIC] == b"ustar"):
                raise DataError(f"{path}: holds a compressed or archived file; unpack it once")
        return opened

    @property
    def max_text_bytes(self) -> int:
        """An upper estimate of the bytes of text in the file."""
        return self.num_bytes * (_MAX_INFLATION if self.packing else 1)

    def first_line(self) -> bytes:
        """Return the first line with its line break, without a byte order mark."""
        with reading(self.path, "text"), self._stream() as stream:
            line = b""
            while b"\n" not in line and (more := stream.read(_PROBE_BYTES)):
                line += more
                self._check_length(len(line) if b"\n" not in line else 0)
        if not line:
            raise DataError(f"{self.path}: is empty; pass a file with events")
        end = line.find(b"\n") + 1
        if not end and b"\r" in line[:-1]:
            raise DataError(f"{self.path}: its lines end in CR; convert it with `tr '\\r' '\\n'`")
        return (line[:end] if end else line).removeprefix(BYTE_ORDER_MARK)

    def first_lines(self, *, skip_header: bool) -> bytes:
        """Return whole lines of about 1 MiB."""
        block = next(self.blocks(_HEAD_BYTES, skip_header=skip_header), None)
        return b"" if block is None else block.read()

    def max_lines(self, first_lines: bytes) -> int:
        """Return an upper estimate of the number of lines, from the result of `first_lines`."""
        lines_per_byte = count_lines(first_lines) / max(1, len(first_lines))
        return int(_SAFETY * self.max_text_bytes * lines_per_byte) + 1

    def blocks(self, block_bytes: int, *, skip_header: bool) -> Iterator[TextBlock]:
        """Yield whole lines in blocks of about `block_bytes` of text.

        Args:
            block_bytes: approximate size of a block, uncompressed.
            skip_header: leave out the first line.

        Raises:
            DataError: the file is damaged or is not text.
        """
        with reading(self.path, "text"), self._stream() as stream:
            mark = len(BYTE_ORDER_MARK) if stream.read(3) == BYTE_ORDER_MARK else 0
        begin = mark + (len(self.first_line()) if skip_header else 0)
        return self._unpacked(block_bytes, begin) if self.packing else self._plain(block_bytes, begin)

    def _plain(self, block_bytes: int, begin: int) -> Iterator[TextBlock]:
        weighed = 0
        with reading(self.path, "text"), self.path.open("rb") as file:
            if os.fstat(file.fileno()).st_size != self.num_bytes:
                raise DataError(
                    f"{self.path}: changed while it was read; wait until it is complete, then repeat the "
                    "command"
                )
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

    def _unpacked(self, block_bytes: int, skipped: int) -> Iterator[TextBlock]:
        rest, num_read, weighed = b"", 0, 0
        with reading(self.path, "text"), self._stream() as stream:
            while more := stream.read(block_bytes):
                num_read += len(more)
                data = rest + more
                cut = data.rfind(b"\n") + 1
                self._check_length(0 if cut else len(data))
                rest = data[cut:]
                if cut > skipped:
                    at = min(self.num_bytes, max(weighed, num_read // _MAX_INFLATION))
                    yield TextBlock(self.path, 0, 0, at - weighed, data[skipped:cut])
                    weighed = at
                skipped = max(0, skipped - cut)
        if rest[skipped:]:
            yield TextBlock(self.path, 0, 0, self.num_bytes - weighed, rest[skipped:])

    @contextmanager
    def _stream(self) -> Iterator[Any]:
        """Open the uncompressed text as a stream of bytes."""
        if self.packing == "xz":
            with lzma.open(self.path) as stream:
                yield stream
        elif self.packing == "zip":
            with zipfile.ZipFile(self.path) as archive:
                names = [entry.filename for entry in archive.infolist() if not entry.is_dir()]
                member = archive.getinfo(self._chosen(names))
                if member.flag_bits & _ENCRYPTED:
                    raise DataError(f"{self.path}: is encrypted; unpack it, and pass the file to read")
                with archive.open(member) as stream:
                    yield stream
        elif self.packing == "tar":
            with tarfile.open(self.path) as archive:
                members = {member.name: member for member in archive if member.isfile()}
                stream = archive.extractfile(members[self._chosen(list(members))])
                assert stream is not None
                with stream:
                    yield stream
        else:
            with pa.input_stream(str(self.path.absolute()), compression=self.packing) as stream:
                yield stream

    def _chosen(self, names: list[str]) -> str:
        """Return the name of the archive member to read.

        Raises:
            DataError: none or several members match.
        """
        found = [name for name in names if fnmatch.fnmatch(name.rpartition("/")[2], self.member)]
        found = [name for name in found if not name.startswith("__MACOSX/")]
        if len(found) != 1:
            which = "files" if self.member == "*" else f"files {self.member}"
            shown = ", ".join(names[:10]) + (", ..." if len(names) > 10 else "")
            raise DataError(
                f"{self.path}: the archive holds {len(found)} {which} ({shown}); unpack it, and pass the "
                "file to read"
            )
        return found[0]

    def _check_length(self, line_bytes: int) -> None:
        if line_bytes >= _LONGEST_LINE:
            raise DataError(
                f"{self.path}: cannot be read as text (no line break within {_LONGEST_LINE >> 20} MiB); "
                "check that it is complete and consists of lines"
            )


def _check_is_text(path: Path, start: bytes) -> None:
    """Check that a file does not start with the magic bytes of a format that is not text.

    Raises:
        DataError: it does; the message names the format and the remedy.
    """
    zeros = sorted((start[::2].count(0), start[1::2].count(0)))
    if zeros[0] == 0 and zeros[1] > len(start) // 4:
        start = _UTF_16  # without a byte order mark
    for magic, what in _FOREIGN.items():
        if start.startswith(magic):
            raise DataError(f"{path}: is " + what.replace("{path}", str(path)))
