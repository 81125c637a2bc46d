"""Delimited text with a header line: CSV, TSV and RecBole's `.inter`, plain, gzip, zstd or bzip2."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from longplay.data_shards.readers.fields import Columns, RowFormat
from longplay.data_shards.readers.text_blocks import TextFile
from longplay.data_shards.readers.text_layout import Layout, TextSource, header_names

_TAB_SUFFIXES = (".tsv", ".inter")
_SEPARATORS = (",", "\t", ";", "|")


@dataclass(frozen=True, kw_only=True)
class CsvSource(TextSource):
    """Delimited text with a header line and named columns.

    Attributes:
        paths: files of the same kind, read one after the other.
        sep: the separator; None takes it from the file's extension or header line.
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
    """Tab for `.tsv` and `.inter`, else the usual separator most frequent in the header, comma if none."""
    name = path.name.removesuffix(".gz").removesuffix(".zst").removesuffix(".bz2")
    if name.endswith(_TAB_SUFFIXES):
        return "\t"
    return max(_SEPARATORS, key=header.count)
