"""`longplay prepare`: raw events -> a dataset folder that the other commands read."""

from __future__ import annotations

import argparse
import signal
import sys
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from tqdm import tqdm

from longplay.data_shards.errors import DataError
from longplay.data_shards.fields import Columns
from longplay.data_shards.parquet_reader import ParquetSource
from longplay.data_shards.prepare import Prepared, PrepareOptions, check_output, prepare_dataset
from longplay.data_shards.sources import Source
from longplay.data_shards.synthetic import SyntheticSource
from longplay.data_shards.text_reader import CsvSource, Ml1mSource

_SEPARATOR_NAMES = {"tab": "\t", "\\t": "\t", "comma": ",", "semicolon": ";", "pipe": "|", "space": " "}


def register(subparsers: Any) -> None:
    """Adds the command `prepare` to the subparsers of `longplay`; its `func` takes the parsed arguments."""
    parser = subparsers.add_parser("prepare", help="raw events -> tar shards", description=__doc__)
    add_arguments(parser)
    parser.set_defaults(func=run)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds one subcommand per source format."""
    formats = parser.add_subparsers(dest="format", required=True, metavar="FORMAT")
    ml1m = formats.add_parser("ml1m", help="the original MovieLens 1M ratings.dat")
    ml1m.add_argument("path", type=Path, help="ratings.dat, or the folder that holds it")
    csv = formats.add_parser(
        "csv", help="delimited text with a header: .csv, .tsv, .inter, also .gz and .zst"
    )
    csv.add_argument(
        "--sep", help="separator: one of `tab`, `comma`, ... or any text (default: by extension or header)"
    )
    parquet = formats.add_parser("parquet", help="Parquet files")
    for files in (csv, parquet):
        files.add_argument("paths", type=Path, nargs="+", metavar="FILE")
        _add_column_arguments(files)
    synthetic = formats.add_parser("synthetic", help="generated histories in which order carries information")
    _add_synthetic_arguments(synthetic)
    for one in (ml1m, csv, parquet, synthetic):
        _add_common_arguments(
            one, seed_help="draws the users' order in the shards; for synthetic the events too"
        )


def _add_column_arguments(parser: argparse.ArgumentParser) -> None:
    default = Columns()
    for role, name in default.names().items():
        parser.add_argument(
            f"--{role}", default=name, metavar="COLUMN", help=f"column of the {role} (default: {name})"
        )
    parser.add_argument(
        "--time-scale",
        type=int,
        default=default.time_scale,
        metavar="N",
        help="multiply times by N and round: 1000 keeps the milliseconds of times in seconds with a fraction "
        "(default: 1, a time with a fraction is an unusable row)",
    )


def _add_synthetic_arguments(parser: argparse.ArgumentParser) -> None:
    default = SyntheticSource()
    for name in ("users", "items", "events"):
        parser.add_argument(
            f"--{name}", type=int, default=getattr(default, name), metavar="N", help="(default: %(default)s)"
        )
    for name, meaning in (
        ("zipf", "exponent of the items' popularity"),
        ("length-sigma", "spread of the log-normal lengths"),
        ("follow-probability", "share of events that follow the one before"),
    ):
        value = getattr(default, name.replace("-", "_"))
        parser.add_argument(
            f"--{name}", type=float, default=value, metavar="X", help=f"{meaning} (default: {value})"
        )


def _add_common_arguments(parser: argparse.ArgumentParser, seed_help: str) -> None:
    default = PrepareOptions()
    parser.add_argument("--out", type=Path, required=True, metavar="DIR", help="where the dataset goes")
    parser.add_argument("--overwrite", action="store_true", help="replace the dataset at --out")
    parser.add_argument(
        "--min-user-events",
        type=int,
        default=default.min_user_events,
        metavar="N",
        help="drop users with fewer events (default: %(default)s)",
    )
    parser.add_argument(
        "--max-bad-fraction",
        type=float,
        default=default.max_bad_fraction,
        metavar="X",
        help="stop when a greater share of the rows cannot be used (default: %(default)s)",
    )
    parser.add_argument(
        "--shards", type=int, metavar="N", help="number of tar files (default: by size, a multiple of 24)"
    )
    parser.add_argument(
        "--seed", type=int, default=default.seed, metavar="N", help=f"{seed_help} (default: %(default)s)"
    )


def run(args: argparse.Namespace) -> int:
    """Prepares what `args` describe; returns the exit code.

    Raises:
        DataError: unusable input, options or output path.
    """
    source = _source(args)
    options = PrepareOptions(
        min_user_events=args.min_user_events,
        max_bad_fraction=args.max_bad_fraction,
        num_shards=args.shards,
        seed=args.seed,
        overwrite=args.overwrite,
    )
    check_output(args.out, overwrite=args.overwrite)
    described = source.describe()
    origin = ", ".join(described["paths"]) or "generated events"
    print(
        f"prepare {described['format']}: {origin} -> {args.out}"
        f"{' (replacing the dataset there)' if args.overwrite and args.out.exists() else ''}\n"
        f"users with fewer than {options.min_user_events} events are dropped, items renumbered by frequency"
    )
    with _terminable(), _Bars() as bars:
        prepared = prepare_dataset(source, args.out, options, bars)
    _print_summary(prepared, args.out)
    return 0


def _source(args: argparse.Namespace) -> Source:
    if args.format == "ml1m":
        return Ml1mSource(path=args.path)
    if args.format == "synthetic":
        names = ("users", "items", "events", "zipf", "length_sigma", "follow_probability", "seed")
        return SyntheticSource(**{name: getattr(args, name) for name in names})
    columns = Columns(user=args.user, item=args.item, time=args.time, time_scale=args.time_scale)
    if args.format == "parquet":
        return ParquetSource(paths=tuple(args.paths), columns=columns)
    return CsvSource(paths=tuple(args.paths), columns=columns, sep=_SEPARATOR_NAMES.get(args.sep, args.sep))


@contextmanager
def _terminable() -> Iterator[None]:
    """Makes SIGTERM end the work as an exception does, so that what is half-written is removed."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = signal.signal(signal.SIGTERM, lambda number, _: sys.exit(128 + number))
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


class _Bars:
    """Progress bars on a terminal, one per stage; nothing elsewhere."""

    def __init__(self) -> None:
        self._stage = ""
        self._bar: tqdm | None = None

    def __enter__(self) -> _Bars:
        return self

    def __exit__(self, *_: object) -> None:
        if self._bar is not None:
            self._bar.close()

    def __call__(self, stage: str, done: int, total: int) -> None:
        if self._bar is None or stage != self._stage:
            self.__exit__()
            self._stage = stage
            self._bar = tqdm(total=total, desc=stage, disable=None, leave=False, unit_scale=True)
        self._bar.update(done - self._bar.n)


def _print_summary(prepared: Prepared, out: Path) -> None:
    manifest = prepared.manifest
    if prepared.bad_rows.first:
        print(f"{prepared.bad_rows.num_bad} unusable rows were dropped, the first of them:")
        print("".join(f"  {row}\n" for row in prepared.bad_rows.first), end="")
    lines = [
        ("rows in", manifest.rows_in),
        *((f"  dropped, {reason}", count) for reason, count in manifest.rows_dropped.items()),
        ("events", manifest.num_events),
        ("users", manifest.num_users),
        ("items", manifest.num_items),
        ("shards", len(manifest.shards)),
        ("bytes", manifest.num_bytes),
    ]
    width = max(len(name) for name, _ in lines)
    print("".join(f"{name:<{width}}  {count:>15,}\n" for name, count in lines), end="")
    print(f"dataset {manifest.dataset_id} is in {out}")


def main(argv: Sequence[str] | None = None) -> int:
    """The command on its own, `python -m longplay.launch.prepare`."""
    parser = argparse.ArgumentParser(prog="prepare", description=__doc__)
    add_arguments(parser)
    try:
        return run(parser.parse_args(argv))
    except DataError as error:
        print(f"longplay: error: {error}", file=sys.stderr)
        return 2


if __name__ == "__main__":
    sys.exit(main())
