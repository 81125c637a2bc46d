"""Delimited text: CSV, TSV, RecBole's `.inter` and lines without a header, plain, compressed or archived."""

from __future__ import annotations

from argparse import ArgumentParser, Namespace
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import pyarrow as pa

from longplay.data_shards.errors import DataError
from longplay.data_shards.readers.arguments import add_file_arguments, file_options
from longplay.data_shards.readers.bad_rows import BAD_QUOTING
from longplay.data_shards.readers.inputs import find_files, without_compression
from longplay.data_shards.readers.registry import READERS, Reader
from longplay.data_shards.readers.row_parser import RawTable
from longplay.data_shards.readers.tables import HEAD_ROWS, FileSource, TableFile
from longplay.data_shards.readers.text_files import TextFile
from longplay.data_shards.readers.text_lines import LineFormat, split_line

SUFFIXES = (".csv", ".tsv", ".inter", ".txt", ".dat", ".tab")
_TAB_SUFFIXES = (".tsv", ".inter", ".tab")
_SEPARATORS = (",", "\t", ";", "|")
_SEPARATOR_NAMES = {"tab": "\t", "\\t": "\t", "comma": ",", "semicolon": ";", "pipe": "|", "space": " "}


@dataclass(frozen=True, kw_only=True)
class TextSource(FileSource):
    """Files of delimited text.

    Attributes:
        sep: the separator; None: detected from each file's extension or first line.
        header: names of the columns of files without a header line; (): their numbers from 1; None: the first
            line is a header.
        quotes: fields may be quoted with `"`; None: detected from the first lines.
        member: file name pattern of the archive member to read.
    """

    sep: str | None = None
    header: tuple[str, ...] | None = None
    quotes: bool | None = None
    member: str = "*"

    def find_files(self) -> tuple[Path, ...]:
        return find_files(self.paths, SUFFIXES)

    def open_file(self, path: Path) -> TableFile:
        return _DelimitedFile(self, TextFile.open(path, self.member))


class _DelimitedFile:
    """A text file and its separator, header and quoting."""

    is_text = True

    def __init__(self, source: TextSource, file: TextFile) -> None:
        self.path, self.weight, self._file = file.path, file.num_bytes, file
        line = file.first_line()
        self._sep = source.sep or _guess_separator(file.path, line.decode("utf-8", "replace"))
        self._has_header_line = source.header is None
        names = split_line(line, self._sep, quotes=len(self._sep) == 1)
        self.header: Sequence[str] = (
            [name.strip() for name in names]
            if self._has_header_line
            else source.header or [str(number) for number in range(1, len(names) + 1)]
        )
        quotes = len(self._sep) == 1 if source.quotes is None else source.quotes
        self._lines = LineFormat(self._sep, len(self.header), quotes)
        data = file.first_lines(skip_header=self._has_header_line)
        if source.quotes is None and quotes:
            self._lines = self._better_quoted(data)
        self.max_rows = file.max_lines(data)

    def _better_quoted(self, first_lines: bytes) -> LineFormat:
        """Return the format, with or without quotes, by which fewer of the first lines are unusable."""
        formats = [LineFormat(self._sep, len(self.header), quotes) for quotes in (True, False)]
        faults = []
        for lines in formats:
            table, _, _ = lines.split(first_lines, [0])
            found = table["fault"].to_pylist() if "fault" in table.column_names else []
            faults.append((sum(fault is not None for fault in found), found.count(BAD_QUOTING)))
        return formats[1] if faults[1] < faults[0] else formats[0]

    def head(self) -> pa.Table:
        data = self._file.first_lines(skip_header=self._has_header_line)
        table, _, _ = self._lines.split(data, list(range(len(self.header))))
        if "fault" in table.column_names:
            table = table.filter(table["fault"].is_null())
        return table.select([f"c{at}" for at in range(len(self.header))]).slice(0, HEAD_ROWS)

    def blocks(self, block_bytes: int, needed: Sequence[int]) -> Iterator[tuple[int, Callable[[], RawTable]]]:
        first_number = 2 if self._has_header_line else 1
        for block in self._file.blocks(block_bytes, skip_header=self._has_header_line):

            def read(data: Callable[[], bytes] = block.read) -> RawTable:
                table, numbers, num_blank = self._lines.split(data(), list(needed))
                return RawTable(table, f"{self.path}, line", numbers + first_number, num_blank)

            yield block.weight, read


def _guess_separator(path: Path, line: str) -> str:
    """Return a tab for `.tsv`, `.inter` and `.tab`, else the most frequent separator of the first line.

    A line without any of them is separated by spaces.
    """
    if without_compression(path.name).lower().endswith(_TAB_SUFFIXES):
        return "\t"
    found = max(_SEPARATORS, key=line.count)
    return found if found in line else " "


def _add_arguments(parser: ArgumentParser) -> None:
    add_file_arguments(parser)
    meaning = "separator: tab, comma, semicolon, pipe, space or any text (default: detected)"
    parser.add_argument("--sep", help=meaning)
    meaning = "none: the file has no header line, and columns are numbered from 1 (default: %(default)s)"
    parser.add_argument("--header", choices=["first-line", "none"], default="first-line", help=meaning)
    meaning = 'double: fields may be quoted with "; none: " is text (default: detected)'
    parser.add_argument("--quote", choices=["double", "none"], help=meaning)


def _open(args: Namespace) -> TextSource:
    if args.sep == "":
        raise DataError("--sep is empty; pass tab, comma, semicolon, pipe, space or the separating text")
    given = file_options(args)
    header = None if args.header == "first-line" else args.header
    given["options"] |= {"sep": args.sep, "header": header, "quote": args.quote}
    return TextSource(
        format="csv",
        sep=_SEPARATOR_NAMES.get(args.sep, args.sep),
        header=None if header is None else (),
        quotes=None if args.quote is None else args.quote == "double",
        **given,
    )


READERS.register(
    "csv",
    Reader(
        help="delimited text: .csv, .tsv, .inter, ..., also compressed or in a .zip or .tar",
        add_arguments=_add_arguments,
        open=_open,
    ),
)
