"""Read public datasets as they are distributed. A preset chooses the files, the columns and their types."""

from __future__ import annotations

import functools
import re
from argparse import ArgumentParser, Namespace
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from longplay.data_shards.errors import DataError
from longplay.data_shards.readers.arguments import add_preset_arguments, preset_options
from longplay.data_shards.readers.columns import NO_TIME, Columns
from longplay.data_shards.readers.inputs import check_copies, without_compression
from longplay.data_shards.readers.jsonl import JsonLinesSource
from longplay.data_shards.readers.parquet import ParquetSource
from longplay.data_shards.readers.registry import READERS, Reader
from longplay.data_shards.readers.tables import FileSource
from longplay.data_shards.readers.text import TextSource

_INTEGERS: dict[str, Any] = {"user_type": "integer", "item_type": "integer", "time_type": "integer"}
_LEAST = {"user": 0, "item": 0, "time": 1}
_KUAIRAND_LOG = re.compile(r"(?P<log>log_(?:standard|random)_.+?)(?:_part(?P<part>\d+))?\.csv")


@dataclass(frozen=True, kw_only=True)
class DownloadedText(TextSource):
    """A text file, or the folder or archive that contains it. `member` is its name, uncompressed."""

    def find_files(self) -> tuple[Path, ...]:
        return tuple(_file_in(path, self.member) for path in self.paths)


def _file_in(path: Path, name: str) -> Path:
    """Return `path` or, if it is a folder, the only file in it that is called `name`.

    Raises:
        DataError: the folder contains none or several.
    """
    if not path.is_dir():
        return path
    found = [file for file in sorted(path.iterdir()) if without_compression(file.name) == name]
    if not found:
        raise DataError(f"{path / name}: no such file; check the path")
    check_copies(found)
    return found[0]


@dataclass(frozen=True, kw_only=True)
class KuaiRandSource(TextSource):
    """All parts of KuaiRand's standard log and, on request, the log of random exposure.

    Attributes:
        random: also read `log_random_*.csv`, views of randomly chosen videos.
    """

    random: bool = False

    def find_files(self) -> tuple[Path, ...]:
        (path,) = self.paths
        if not path.is_dir():
            raise DataError(
                f"{path}: is not a folder; give the path of the folder that contains log_standard_*.csv"
            )
        folder = path / "data" if (path / "data").is_dir() else path
        logs = sorted(folder.iterdir())
        logs = [file for file in logs if _KUAIRAND_LOG.fullmatch(without_compression(file.name))]
        standard, random = (
            [file for file in logs if file.name.startswith(f"log_{kind}_")] for kind in ("standard", "random")
        )
        if not standard:
            raise DataError(
                f"{folder}: contains no log_standard_*.csv; give the path of the folder that contains them"
            )
        if self.random and not random:
            raise DataError(f"{folder}: contains no log_random_*.csv; add the file or leave out --random")
        files = [*standard, *(random if self.random else [])]
        check_copies(files)
        _check_parts(files)
        return tuple(files)


def _check_parts(files: Sequence[Path]) -> None:
    """Check that the parts of every log are numbered from 1 without a gap.

    Raises:
        DataError: a part is missing.
    """
    names = {without_compression(file.name) for file in files}
    for file in files:
        match = _KUAIRAND_LOG.fullmatch(without_compression(file.name))
        for number in range(1, int(match["part"] or 0) if match else 0):
            before = f"{match['log']}_part{number}.csv" if match else ""
            if before not in names:
                raise DataError(
                    f"{file.parent / before}: no such file, although {file.name} exists; add the missing part"
                )


def _kuairand(args: Namespace) -> FileSource:
    flags = {"all": [], "is_click": ["is_click"], "long_view": ["long_view"]}
    conditions = [f"lower(trim({flag})) IN ('1', '1.0', 'true')" for flag in flags[args.events]]
    conditions += [] if args.tab is None else [f"TRY_CAST(tab AS DOUBLE) = {args.tab}"]
    if args.where and conditions:
        raise DataError("--where cannot be combined with --events or --tab; add their conditions to --where")
    columns = Columns(item="video_id", time="time_ms", time_unit="ms", least=_LEAST, **_INTEGERS)
    where = " AND ".join(conditions) or None
    given = preset_options(args, replace(columns, where=where, typed_where=bool(args.where)))
    given["options"] |= {"events": args.events, "tab": args.tab, "random": args.random}
    return KuaiRandSource(format="kuairand", sep=",", random=args.random, **given)


def _kuairand_arguments(parser: ArgumentParser) -> None:
    add_preset_arguments(parser, "the folder that contains log_standard_*.csv, or its parent")
    parser.add_argument(
        "--events",
        choices=["all", "is_click", "long_view"],
        default="all",
        help="all: every view; is_click or long_view: only views with this flag (default: all)",
    )
    parser.add_argument("--tab", type=int, metavar="N", help="only views on this page of the app, 0 to 14")
    parser.add_argument(
        "--random", action="store_true", help="also read log_random_*.csv, views of randomly chosen videos"
    )


def _amazon(args: Namespace) -> FileSource:
    name = without_compression(args.path.name).lower()
    columns = Columns(item="parent_asin", time_unit="ms", user_type="string", item_type="string")
    if name.endswith(".csv"):
        return TextSource(format="amazon", sep=",", **preset_options(args, columns))
    if not name.endswith(".jsonl"):  # of 2014 and 2018
        columns = replace(columns, user="reviewerID", item="asin", time="unixReviewTime", time_unit="s")
    return JsonLinesSource(format="amazon", **preset_options(args, columns))


@dataclass(frozen=True, kw_only=True)
class DownloadedParquet(ParquetSource):
    """A Parquet file, or all files of one name pattern at any depth below a folder, in order of file name.

    Attributes:
        name: pattern of the files' names.
    """

    name: str

    def find_files(self) -> tuple[Path, ...]:
        (path,) = self.paths
        if not path.is_dir():
            return (path,)
        files = sorted(path.rglob(self.name), key=lambda file: file.name)
        if not files:
            raise DataError(
                f"{path}: contains no {self.name}; give the path of the folder that contains them"
            )
        names = [file.name for file in files]
        for file in files:
            if names.count(file.name) > 1:
                raise DataError(
                    f"{path}: contains {file.name} {names.count(file.name)} times; give one of its folders"
                )
        return tuple(files)


def _register(name: str, open: Callable[[Namespace], FileSource], *, help: str, path: str) -> None:
    """Register a preset. `path` is the help of its only positional argument."""
    add = functools.partial(add_preset_arguments, help=path)
    READERS.register(name, Reader(help=help, add_arguments=add, open=open))


_register(
    "ml1m",
    lambda args: DownloadedText(
        format="ml1m",
        member="ratings.dat",
        sep="::",
        header=("UserID", "MovieID", "Rating", "Timestamp"),
        quotes=False,
        **preset_options(
            args, Columns(user="UserID", item="MovieID", time="Timestamp", time_unit="s", **_INTEGERS)
        ),
    ),
    help="the original MovieLens 1M ratings.dat",
    path="ratings.dat, the folder that contains it, or ml-1m.zip",
)
_register(
    "movielens",
    lambda args: DownloadedText(
        format="movielens",
        member="ratings.csv",
        sep=",",
        **preset_options(args, Columns(user="userId", item="movieId", time="timestamp", time_unit="s")),
    ),
    help="ratings.csv of MovieLens 20M, 25M and 32M",
    path="ratings.csv, the folder that contains it, or ml-25m.zip",
)
_register(
    "lfm1b",
    lambda args: DownloadedText(
        format="lfm1b",
        member="LFM-1b_LEs.txt",
        sep="\t",
        header=("user_id", "artist_id", "album_id", "track_id", "timestamp"),
        quotes=False,
        **preset_options(args, Columns(item="track_id", time_unit="s", least=_LEAST, **_INTEGERS)),
    ),
    help="the original listening events of LFM-1b",
    path="LFM-1b_LEs.txt, also compressed, the folder that contains it, or LFM-1b.zip",
)
_register(
    "amazon",
    _amazon,
    help="Amazon reviews: JSON lines of 2014, 2018 and 2023, and CSV of 2023",
    path="the file of a category, such as Books_5.json.gz or Books.csv.gz",
)
_register(
    "yambda",
    lambda args: DownloadedParquet(
        format="yambda", name="listens.parquet", **preset_options(args, Columns(user="uid"))
    ),
    help="Yambda's flat Parquet files",
    path="a file, or the folder that contains listens.parquet",
)
_register(
    "vklsvd",
    lambda args: DownloadedParquet(
        format="vklsvd", name="week_*.parquet", **preset_options(args, Columns(time=NO_TIME))
    ),
    help="VK-LSVD's weekly Parquet files; the order of the rows is the time",
    path="the folder that contains the weeks, at any depth, or one file",
)
READERS.register(
    "kuairand",
    Reader(
        help="the original logs of KuaiRand, all parts", add_arguments=_kuairand_arguments, open=_kuairand
    ),
)
