"""Delimited text with a header line: CSV, TSV and RecBole's `.inter`, plain, gzip, zstd or bzip2."""

from __future__ import annotations

from argparse import ArgumentParser
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from longplay.data_shards.readers.fields import Columns, RowFormat, add_column_arguments, columns_of
from longplay.data_shards.readers.registry import READERS, Reader
from longplay.data_shards.readers.text_blocks import TextFile
from longplay.data_shards.readers.text_layout import Layout, TextSource, header_names

_TAB_SUFFIXES = (".tsv", ".inter")
_SEPARATORS = (",", "\t", ";", "|")
_SEPARATOR_NAMES = {"tab": "\t", "\\t": "\t", "comma": ",", "semicolon": ";", "pipe": "|", "space": " "}


@dataclass(frozen=True, kw_only=True)
class CsvSource(TextSource):
    """Delimited text with a header line and named columns.

    Attributes:
        paths: files of the same format, read in this order.
        columns: which columns hold the user, the item and the time.
        sep: the separator; None: chosen by each file's extension or header line.
    """

    paths: tuple[Path, ...]
    columns: Columns = field(default_factory=Columns)
    sep: str | None = None

    def describe(self) -> dict[str, Any]:
        options = {**vars(self.columns), "sep": self.sep}
        return {"format": "csv", "paths": [str(path) for path in self.paths], "options": options}

    def files(self) -> tuple[Path, ...]:
        return self.paths

    def layout(self, file: TextFile) -> Layout:
        line = file.first_line()
        sep = self.sep or _guess_separator(file.path, line.decode("utf-8", "replace"))
        form = RowFormat(columns=self.columns)
        return Layout(
            file.path,
            sep,
            header_names(line, sep),
            form,
            quotes=len(sep) == 1,
            has_header_line=True,
            nameable=True,
        )


def _guess_separator(path: Path, header: str) -> str:
    """Return a tab for `.tsv` and `.inter`, else the usual separator that is most frequent in the header."""
    name = path.name.removesuffix(".gz").removesuffix(".zst").removesuffix(".bz2")
    if name.endswith(_TAB_SUFFIXES):
        return "\t"
    return max(_SEPARATORS, key=header.count)


def _add_arguments(parser: ArgumentParser) -> None:
    parser.add_argument("paths", type=Path, nargs="+", metavar="FILE")
    parser.add_argument(
        "--sep",
        help="separator: tab, comma, semicolon, pipe, space or any text (default: by extension or header)",
    )
    add_column_arguments(parser)


READERS.register(
    "csv",
    Reader(
        help="delimited text with a header line: .csv, .tsv, .inter, also .gz, .bz2 or .zst",
        add_arguments=_add_arguments,
        open=lambda args: CsvSource(
            paths=tuple(args.paths),
            columns=columns_of(args),
            sep=_SEPARATOR_NAMES.get(args.sep, args.sep),
        ),
    ),
)
