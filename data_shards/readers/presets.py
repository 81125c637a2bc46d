"""Read public datasets as they are downloaded. Each preset is a choice of files, columns and types."""

from __future__ import annotations

import re
from argparse import ArgumentParser, Namespace
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from longplay.data_shards.errors import DataError
from longplay.data_shards.readers.columns import Columns, add_selecting_arguments, selecting_options
from longplay.data_shards.readers.downloads import input_path
from longplay.data_shards.readers.inputs import check_copies, without_compression
from longplay.data_shards.readers.jsonl import JsonLinesSource
from longplay.data_shards.readers.parquet import ParquetSource
from longplay.data_shards.readers.registry import READERS, Reader
from longplay.data_shards.readers.tables import FileSource
from longplay.data_shards.readers.text import TextSource

_KUAIRAND_LOG = re.compile(r"(?P<log>log_(?:standard|random)_.+?)(?:_part(?P<part>\d+))?\.csv")


@dataclass(frozen=True, kw_only=True)
class DownloadedText(TextSource):
    """A text file, or the folder that contains it under its own name.

    Attributes:
        name: name of the file, without the suffix of its compression.
    """

    name: str

    def find_files(self) -> tuple[Path, ...]:
        return tuple(_file_in(path, self.name) for path in self.paths)


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


def _downloaded(args: Namespace, format: str, name: str, columns: Columns, **dialect: Any) -> DownloadedText:
    columns, options = _selected(args, columns)
    paths = (args.path,)
    return DownloadedText(
        format=format, paths=paths, columns=columns, options=options, name=name, member=name, **dialect
    )


def _selected(args: Namespace, columns: Columns) -> tuple[Columns, dict[str, Any]]:
    """Apply `--where` and `--features` to the columns. Return them, and the options for the manifest."""
    chosen = replace(columns, where=args.where or columns.where, features=args.features)
    return chosen, selecting_options(args)


def _ml1m(args: Namespace) -> FileSource:
    columns = Columns(user="UserID", item="MovieID", time="Timestamp", time_unit="s")
    columns = replace(columns, user_type="integer", item_type="integer", time_type="integer")
    header = ("UserID", "MovieID", "Rating", "Timestamp")
    return _downloaded(args, "ml1m", "ratings.dat", columns, sep="::", header=header, quotes=False)


def _movielens(args: Namespace) -> FileSource:
    columns = Columns(user="userId", item="movieId", time="timestamp", time_unit="s")
    return _downloaded(args, "movielens", "ratings.csv", columns, sep=",")


def _lfm1b(args: Namespace) -> FileSource:
    columns = Columns(
        user="user_id",
        item="track_id",
        time="timestamp",
        user_type="integer",
        item_type="integer",
        time_type="integer",
        time_unit="s",
        least={"user": 0, "item": 0, "time": 1},
    )
    header = ("user_id", "artist_id", "album_id", "track_id", "timestamp")
    return _downloaded(args, "lfm1b", "LFM-1b_LEs.txt", columns, sep="\t", header=header, quotes=False)


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
    columns = Columns(
        user="user_id",
        item="video_id",
        time="time_ms",
        user_type="integer",
        item_type="integer",
        time_type="integer",
        time_unit="ms",
        least={"user": 0, "item": 0, "time": 1},
        where=" AND ".join(conditions) or None,
        typed_where=False,
    )
    if args.where:
        if conditions:
            raise DataError(
                "--where cannot be combined with --events or --tab; add their conditions to --where"
            )
        columns = replace(columns, typed_where=True)
    columns, options = _selected(args, columns)
    options |= {"events": args.events, "tab": args.tab, "random": args.random}
    return KuaiRandSource(
        format="kuairand", paths=(args.path,), columns=columns, options=options, sep=",", random=args.random
    )


def _kuairand_arguments(parser: ArgumentParser) -> None:
    _path_argument("the folder that contains log_standard_*.csv, or its parent")(parser)
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
    if name.endswith(".csv"):
        columns = Columns(item="parent_asin", user_type="string", item_type="string", time_unit="ms")
        columns, options = _selected(args, columns)
        return TextSource(format="amazon", paths=(args.path,), columns=columns, options=options, sep=",")
    new = name.endswith(".jsonl")
    names = ("user_id", "parent_asin", "timestamp") if new else ("reviewerID", "asin", "unixReviewTime")
    columns = Columns(user=names[0], item=names[1], time=names[2], time_unit="ms" if new else "s")
    columns, options = _selected(args, replace(columns, user_type="string", item_type="string"))
    return JsonLinesSource(format="amazon", paths=(args.path,), columns=columns, options=options)


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


def _yambda(args: Namespace) -> FileSource:
    columns, options = _selected(args, Columns(user="uid", item="item_id", time="timestamp"))
    paths = (args.path,)
    return DownloadedParquet(
        format="yambda", paths=paths, columns=columns, options=options, name="listens.parquet"
    )


def _vklsvd(args: Namespace) -> FileSource:
    columns, options = _selected(args, Columns(user="user_id", item="item_id", time="none"))
    paths = (args.path,)
    return DownloadedParquet(
        format="vklsvd", paths=paths, columns=columns, options=options, name="week_*.parquet"
    )


def _path_argument(help: str) -> Callable[[ArgumentParser], None]:
    def add(parser: ArgumentParser) -> None:
        parser.add_argument("path", type=input_path, metavar="PATH", help=help)
        add_selecting_arguments(parser)

    return add


_PRESETS: dict[str, tuple[str, Callable[[ArgumentParser], None], Callable[[Namespace], FileSource]]] = {
    "ml1m": (
        "the original MovieLens 1M ratings.dat",
        _path_argument("ratings.dat, the folder that contains it, or ml-1m.zip"),
        _ml1m,
    ),
    "movielens": (
        "ratings.csv of MovieLens 20M, 25M and 32M",
        _path_argument("ratings.csv, the folder that contains it, or ml-25m.zip"),
        _movielens,
    ),
    "lfm1b": (
        "the original listening events of LFM-1b",
        _path_argument("LFM-1b_LEs.txt, also compressed, the folder that contains it, or LFM-1b.zip"),
        _lfm1b,
    ),
    "kuairand": ("the original logs of KuaiRand, all parts", _kuairand_arguments, _kuairand),
    "amazon": (
        "Amazon reviews: JSON lines of 2014, 2018 and 2023, and CSV of 2023",
        _path_argument("the file of a category, such as Books_5.json.gz or Books.csv.gz"),
        _amazon,
    ),
    "yambda": (
        "Yambda's flat Parquet files",
        _path_argument("a file, or the folder that contains listens.parquet"),
        _yambda,
    ),
    "vklsvd": (
        "VK-LSVD's weekly Parquet files; the order of the rows is the time",
        _path_argument("the folder that contains the weeks, at any depth, or one file"),
        _vklsvd,
    ),
}
for _name, (_help, _add, _open) in _PRESETS.items():
    READERS.register(_name, Reader(help=_help, add_arguments=_add, open=_open))
