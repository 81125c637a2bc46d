"""MovieLens 1M as it is downloaded: `ratings.dat`."""

from __future__ import annotations

from argparse import ArgumentParser
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from longplay.data_shards.readers.fields import Columns, RowFormat
from longplay.data_shards.readers.registry import READERS, Reader
from longplay.data_shards.readers.text_blocks import TextFile
from longplay.data_shards.readers.text_layout import Layout, TextSource

_HEADER = ("UserID", "MovieID", "Rating", "Timestamp")


@dataclass(frozen=True, kw_only=True)
class Ml1mSource(TextSource):
    """The original ratings: `UserID::MovieID::Rating::Timestamp` without a header line.

    Attributes:
        path: `ratings.dat`, or the folder that contains it.
    """

    path: Path

    def describe(self) -> dict[str, Any]:
        return {"format": "ml1m", "paths": [str(self.path)], "options": {}}

    def files(self) -> tuple[Path, ...]:
        return (self.path / "ratings.dat" if self.path.is_dir() else self.path,)

    def layout(self, file: TextFile) -> Layout:
        form = RowFormat(columns=Columns(user="UserID", item="MovieID", time="Timestamp"))
        return Layout(file.path, "::", _HEADER, form, quotes=False, has_header_line=False)


def _add_arguments(parser: ArgumentParser) -> None:
    parser.add_argument("path", type=Path, help="ratings.dat, or the folder that contains it")


READERS.register(
    "ml1m",
    Reader(
        help="the original MovieLens 1M ratings.dat",
        add_arguments=_add_arguments,
        open=lambda args: Ml1mSource(path=args.path),
        time_unit_s=1.0,
    ),
)
