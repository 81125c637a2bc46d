"""LFM-1b's listening events as they are downloaded: `LFM-1b_LEs.txt`."""

from __future__ import annotations

from argparse import ArgumentParser
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from longplay.data_shards.errors import DataError
from longplay.data_shards.readers.fields import Columns, RowFormat
from longplay.data_shards.readers.registry import READERS, Reader
from longplay.data_shards.readers.text_blocks import TextFile
from longplay.data_shards.readers.text_layout import Layout, TextSource

_HEADER = ("user_id", "artist_id", "album_id", "track_id", "timestamp")


@dataclass(frozen=True, kw_only=True)
class Lfm1bSource(TextSource):
    """Listening events: tab-separated user, artist, album, track and Unix seconds, without a header line.

    Rows with a negative id or a time below 1 are unusable. Repeated plays of a track are separate events.

    Attributes:
        path: `LFM-1b_LEs.txt`, plain or compressed, or the folder that contains it.
    """

    path: Path

    def describe(self) -> dict[str, Any]:
        return {"format": "lfm1b", "paths": [str(self.path)], "options": {}}

    def files(self) -> tuple[Path, ...]:
        if not self.path.is_dir():
            return (self.path,)
        found = sorted(self.path.glob("LFM-1b_LEs.txt*"))
        if len(found) != 1:
            raise DataError(
                f"{self.path}: contains {len(found)} files LFM-1b_LEs.txt*; give the path of the file to read"
            )
        return (found[0],)

    def layout(self, file: TextFile) -> Layout:
        columns = Columns(user="user_id", item="track_id", time="timestamp")
        form = RowFormat(columns=columns, least={"user": 0, "item": 0, "time": 1})
        return Layout(file.path, "\t", _HEADER, form, quotes=False, has_header_line=False)


def _add_arguments(parser: ArgumentParser) -> None:
    parser.add_argument("path", type=Path, help="LFM-1b_LEs.txt, also .gz, .bz2 or .zst")


READERS.register(
    "lfm1b",
    Reader(
        help="the original listening events of LFM-1b",
        add_arguments=_add_arguments,
        open=lambda args: Lfm1bSource(path=args.path),
        time_unit_s=1.0,
    ),
)
