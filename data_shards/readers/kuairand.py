"""KuaiRand's logs as they are downloaded: `log_standard_*.csv` and `log_random_*.csv`."""

from __future__ import annotations

import re
from argparse import ArgumentParser
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from longplay.data_shards.errors import DataError
from longplay.data_shards.readers.fields import Columns, RowFilter, RowFormat
from longplay.data_shards.readers.registry import READERS, Reader
from longplay.data_shards.readers.text_blocks import TextFile
from longplay.data_shards.readers.text_layout import Layout, TextSource, header_names

KuaiRandEvents = Literal["all", "is_click", "long_view"]
_PART = re.compile(r"^(?P<log>.+_part)(?P<number>\d+)(?P<end>\.csv.*)$")


@dataclass(frozen=True, kw_only=True)
class KuaiRandSource(TextSource):
    """All parts of the standard log and, on request, the log of random exposure.

    Rows with a negative id or a time below 1 are unusable. Times are Unix milliseconds.

    Attributes:
        path: the folder that contains `log_standard_*.csv`; if that folder is called `data`, its parent too.
        events: `all` views, or only those with the named flag set.
        tab: only views on this page of the app; None: all pages.
        random: also read `log_random_*.csv`, views of randomly chosen videos.
    """

    path: Path
    events: KuaiRandEvents = "all"
    tab: int | None = None
    random: bool = False

    def __post_init__(self) -> None:
        if self.events not in ("all", "is_click", "long_view"):
            raise DataError(f"--events is {self.events!r}, but must be all, is_click or long_view")

    def describe(self) -> dict[str, Any]:
        options = {"events": self.events, "tab": self.tab, "random": self.random}
        return {"format": "kuairand", "paths": [str(self.path)], "options": options}

    def files(self) -> tuple[Path, ...]:
        if not self.path.is_dir():
            raise DataError(
                f"{self.path}: is not a folder; give the path of the folder that contains log_standard_*.csv"
            )
        folder = self.path / "data" if (self.path / "data").is_dir() else self.path
        standard = sorted(folder.glob("log_standard_*.csv*"))
        if not standard:
            raise DataError(
                f"{folder}: contains no log_standard_*.csv; give the path of the folder that contains them"
            )
        _check_parts(standard)
        random = sorted(folder.glob("log_random_*.csv*")) if self.random else []
        if self.random and not random:
            raise DataError(f"{folder}: contains no log_random_*.csv; add the file or leave out --random")
        return (*standard, *random)

    def layout(self, file: TextFile) -> Layout:
        wanted = [] if self.events == "all" else [RowFilter(self.events, 1)]
        wanted += [] if self.tab is None else [RowFilter("tab", self.tab)]
        columns = Columns(user="user_id", item="video_id", time="time_ms")
        form = RowFormat(columns=columns, least={"user": 0, "item": 0, "time": 1}, wanted=tuple(wanted))
        header = header_names(file.first_line(), ",")
        return Layout(file.path, ",", header, form, quotes=True, has_header_line=True)


def _check_parts(paths: list[Path]) -> None:
    """Check that every log has all parts before its last one.

    Raises:
        DataError: a part is missing.
    """
    names = {path.name for path in paths}
    for path in paths:
        match = _PART.match(path.name)
        for number in range(1, int(match["number"]) if match else 0):
            before = f"{match['log']}{number}{match['end']}" if match else ""
            if before not in names:
                raise DataError(
                    f"{path.parent / before}: no such file, although {path.name} exists; add the missing part"
                )


def _add_arguments(parser: ArgumentParser) -> None:
    parser.add_argument(
        "path", type=Path, metavar="DIR", help="the folder that contains log_standard_*.csv, or its parent"
    )
    parser.add_argument(
        "--events",
        default="all",
        metavar="WHICH",
        help="all: every view; is_click or long_view: only views with this flag (default: all)",
    )
    parser.add_argument("--tab", type=int, metavar="N", help="only views on this page of the app, 0 to 14")
    parser.add_argument(
        "--random", action="store_true", help="also read log_random_*.csv, views of randomly chosen videos"
    )


READERS.register(
    "kuairand",
    Reader(
        help="the original logs of KuaiRand, all parts",
        add_arguments=_add_arguments,
        open=lambda args: KuaiRandSource(
            path=args.path, events=args.events, tab=args.tab, random=args.random
        ),
        time_unit_s=1e-3,
    ),
)
