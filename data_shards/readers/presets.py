"""The study's datasets as they are downloaded: ML-1M, LFM-1b and KuaiRand."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from longplay.data_shards.errors import DataError
from longplay.data_shards.readers.fields import Columns, RowFilter, RowFormat
from longplay.data_shards.readers.text_blocks import TextFile
from longplay.data_shards.readers.text_layout import Layout, TextSource, header_names

KuaiRandEvents = Literal["all", "is_click", "long_view"]
TIME_UNIT_S = {"ml1m": 1.0, "lfm1b": 1.0, "kuairand": 1e-3}
"""format -> seconds in a unit of its times."""

_ML1M_HEADER = ("UserID", "MovieID", "Rating", "Timestamp")
_LFM1B_HEADER = ("user_id", "artist_id", "album_id", "track_id", "timestamp")
_ID_AND_TIME = {"user": 0, "item": 0, "time": 1}
_KUAIRAND_PART = re.compile(r"^(?P<log>.+_part)(?P<number>\d+)(?P<end>\.csv.*)$")


@dataclass(frozen=True, kw_only=True)
class Ml1mSource(TextSource):
    """The original MovieLens 1M ratings: `UserID::MovieID::Rating::Timestamp`, no header.

    Attributes:
        path: `ratings.dat`, or the folder that holds it.
    """

    path: Path

    def describe(self) -> dict[str, Any]:
        return {"format": "ml1m", "paths": [str(self.path)], "options": {}}

    def files(self) -> tuple[Path, ...]:
        return (self.path / "ratings.dat" if self.path.is_dir() else self.path,)

    def layout(self, file: TextFile) -> Layout:
        form = RowFormat(columns=Columns(user="UserID", item="MovieID", time="Timestamp"))
        return Layout(file.path, "::", _ML1M_HEADER, form, quotes=False, has_header_line=False)


@dataclass(frozen=True, kw_only=True)
class Lfm1bSource(TextSource):
    """LFM-1b's listening events: user, artist, album, track and Unix seconds, tabs between, no header.

    A negative id or a time that is not positive is unusable. Listening again is an event like any other.

    Attributes:
        path: `LFM-1b_LEs.txt`, compressed or not, or the folder that holds it.
    """

    path: Path

    def describe(self) -> dict[str, Any]:
        return {"format": "lfm1b", "paths": [str(self.path)], "options": {}}

    def files(self) -> tuple[Path, ...]:
        if not self.path.is_dir():
            return (self.path,)
        found = sorted(self.path.glob("LFM-1b_LEs.txt*"))
        if len(found) != 1:
            raise DataError(f"{self.path}: {len(found)} files LFM-1b_LEs.txt* in it; name the file to read")
        return (found[0],)

    def layout(self, file: TextFile) -> Layout:
        columns = Columns(user="user_id", item="track_id", time="timestamp")
        form = RowFormat(columns=columns, least=_ID_AND_TIME)
        return Layout(file.path, "\t", _LFM1B_HEADER, form, quotes=False, has_header_line=False)


@dataclass(frozen=True, kw_only=True)
class KuaiRandSource(TextSource):
    """KuaiRand's logs, all parts of them: the standard ones, and on demand that of random exposure.

    A negative id or a time that is not positive is unusable. Times are Unix milliseconds.

    Attributes:
        path: the folder with `log_standard_*.csv`, or the one above its `data`.
        events: all views, or only those with the named flag set.
        tab: only views on this page of the app.
        random: also `log_random_*.csv`, videos that were shown at random.
    """

    path: Path
    events: KuaiRandEvents = "all"
    tab: int | None = None
    random: bool = False

    def __post_init__(self) -> None:
        if self.events not in ("all", "is_click", "long_view"):
            raise DataError(f"--events is {self.events!r}, it must be all, is_click or long_view")

    def describe(self) -> dict[str, Any]:
        options = {"events": self.events, "tab": self.tab, "random": self.random}
        return {"format": "kuairand", "paths": [str(self.path)], "options": options}

    def files(self) -> tuple[Path, ...]:
        if not self.path.is_dir():
            raise DataError(f"{self.path}: not a folder; name the one that holds log_standard_*.csv")
        folder = self.path / "data" if (self.path / "data").is_dir() else self.path
        standard = sorted(folder.glob("log_standard_*.csv*"))
        if not standard:
            raise DataError(f"{folder}: no log_standard_*.csv in it; name the folder that holds them")
        _check_parts(standard)
        random = sorted(folder.glob("log_random_*.csv*")) if self.random else []
        if self.random and not random:
            raise DataError(f"{folder}: no log_random_*.csv in it; leave out --random")
        return (*standard, *random)

    def layout(self, file: TextFile) -> Layout:
        wanted = [] if self.events == "all" else [RowFilter(self.events, 1)]
        wanted += [] if self.tab is None else [RowFilter("tab", self.tab)]
        columns = Columns(user="user_id", item="video_id", time="time_ms")
        form = RowFormat(columns=columns, least=_ID_AND_TIME, wanted=tuple(wanted))
        header = header_names(file.first_line(), ",")
        return Layout(file.path, ",", header, form, quotes=True, has_header_line=True)


def _check_parts(paths: list[Path]) -> None:
    """Sees that no part is missing before one that is there.

    Raises:
        DataError: one is.
    """
    names = {path.name for path in paths}
    for path in paths:
        match = _KUAIRAND_PART.match(path.name)
        for number in range(1, int(match["number"]) if match else 0):
            before = f"{match['log']}{number}{match['end']}" if match else ""
            if before not in names:
                raise DataError(
                    f"{path.parent / before}: no such file, but {path.name} is there; add the missing part"
                )
