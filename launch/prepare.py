"""`longplay prepare`: raw events -> a dataset folder that the other commands read."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from longplay.common.sizes import parse_bytes
from longplay.data_shards.errors import DataError
from longplay.data_shards.generators.synthetic import SyntheticSource
from longplay.data_shards.preparation.pipeline import (
    SCRATCH_BYTES_PER_EVENT,
    Prepared,
    PrepareOptions,
    check_output,
    prepare_dataset,
)
from longplay.data_shards.readers.delimited import CsvSource
from longplay.data_shards.readers.fields import Columns
from longplay.data_shards.readers.parquet import ParquetSource
from longplay.data_shards.readers.presets import TIME_UNIT_S, KuaiRandSource, Lfm1bSource, Ml1mSource
from longplay.data_shards.readers.sources import Source
from longplay.launch.console.progress import StageProgress
from longplay.launch.console.signals import terminable

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
    lfm1b = formats.add_parser("lfm1b", help="LFM-1b's original listening events")
    lfm1b.add_argument("path", type=Path, help="LFM-1b_LEs.txt, also .gz, .bz2 and .zst")
    kuairand = formats.add_parser("kuairand", help="KuaiRand's original logs, all parts")
    _add_kuairand_arguments(kuairand)
    csv = formats.add_parser(
        "csv", help="delimited text with a header: .csv, .tsv, .inter, also .gz, .bz2 and .zst"
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
    for one in (ml1m, lfm1b, kuairand, csv, parquet, synthetic):
        _add_common_arguments(
            one, seed_help="draws the users' order in the shards; for synthetic the events too"
        )


def _add_kuairand_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("path", type=Path, metavar="DIR", help="the folder that holds log_standard_*.csv")
    parser.add_argument(
        "--events",
        default="all",
        metavar="WHICH",
        help="all views, or those with a flag: is_click, long_view (default: all)",
    )
    parser.add_argument("--tab", type=int, metavar="N", help="only views on this page of the app, 0 to 14")
    parser.add_argument(
        "--random", action="store_true", help="also the views of log_random_*.csv, videos shown at random"
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
    for flag, value, meaning in (
        ("--min-user-events", default.min_user_events, "drop users with fewer events"),
        ("--min-item-events", default.min_item_events, "drop items with fewer events, and so on in turns"),
        ("--max-user-events", None, "keep only so many latest events of a user"),
    ):
        shown = "all" if value is None else value
        parser.add_argument(flag, type=int, default=value, metavar="N", help=f"{meaning} (default: {shown})")
    parser.add_argument(
        "--dedup", choices=["latest"], help="of a user's events with the same item keep only the latest"
    )
    parser.add_argument(
        "--from", dest="from_time", metavar="TIME", help="leave out events before; a date or a whole number"
    )
    parser.add_argument(
        "--until",
        dest="until_time",
        metavar="TIME",
        help="leave out events at and after; a date or a whole number",
    )
    parser.add_argument(
        "--memory",
        type=parse_bytes,
        default=default.memory_bytes,
        metavar="SIZE",
        help="memory limit, for example 4GiB (default: 4GiB)",
    )
    parser.add_argument(
        "--scratch", type=Path, metavar="DIR", help="where intermediate files go (default: beside --out)"
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
        min_item_events=args.min_item_events,
        max_user_events=args.max_user_events,
        dedup_latest=args.dedup == "latest",
        from_time=_time(args.from_time, "--from", args.format),
        until_time=_time(args.until_time, "--until", args.format),
        max_bad_fraction=args.max_bad_fraction,
        num_shards=args.shards,
        seed=args.seed,
        overwrite=args.overwrite,
        memory_bytes=args.memory,
        scratch=args.scratch,
    )
    check_output(args.out, overwrite=args.overwrite)
    _print_plan(source, options, args.out)
    with terminable(), StageProgress("events") as progress:
        prepared = prepare_dataset(source, args.out, options, progress)
    _print_summary(prepared, args.out)
    return 0


def _print_plan(source: Source, options: PrepareOptions, out: Path) -> None:
    """Says what will be done, and what it takes."""
    described = source.describe()
    origin = ", ".join(described["paths"]) or "generated events"
    replacing = " (replacing the dataset there)" if out.exists() and any(out.iterdir()) else ""
    most = source.max_events()
    scratch = options.scratch or out.absolute().parent
    print(
        f"prepare {described['format']}: {origin} -> {out}{replacing}\n"
        f"users with fewer than {options.min_user_events} events are dropped, items renumbered by frequency\n"
        f"at most {most:,} events, {options.memory_bytes / 2**30:g} GiB of memory, up to "
        f"{most * SCRATCH_BYTES_PER_EVENT / 2**30:.1f} GiB of disk in {scratch} while it works"
    )


def _time(text: str | None, flag: str, form: str) -> int | None:
    """A whole number in the source's unit, or a date (UTC) where the unit is known.

    Raises:
        DataError: neither.
    """
    if text is None:
        return None
    try:
        return int(text)
    except ValueError:
        pass
    try:
        date = datetime.fromisoformat(text)
    except ValueError:
        raise DataError(f"{flag} is {text!r}, it must be a date such as 2013-06-30 or a number") from None
    if form not in TIME_UNIT_S:
        raise DataError(
            f"{flag} is a date, and the unit of {form} times is not known; pass a whole number in that unit"
        )
    return round((date if date.tzinfo else date.replace(tzinfo=UTC)).timestamp() / TIME_UNIT_S[form])


def _source(args: argparse.Namespace) -> Source:
    if args.format == "ml1m":
        return Ml1mSource(path=args.path)
    if args.format == "lfm1b":
        return Lfm1bSource(path=args.path)
    if args.format == "kuairand":
        return KuaiRandSource(path=args.path, events=args.events, tab=args.tab, random=args.random)
    if args.format == "synthetic":
        names = ("users", "items", "events", "zipf", "length_sigma", "follow_probability", "seed")
        return SyntheticSource(**{name: getattr(args, name) for name in names})
    columns = Columns(user=args.user, item=args.item, time=args.time, time_scale=args.time_scale)
    if args.format == "parquet":
        return ParquetSource(paths=tuple(args.paths), columns=columns)
    return CsvSource(paths=tuple(args.paths), columns=columns, sep=_SEPARATOR_NAMES.get(args.sep, args.sep))


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
    from longplay.launch.cli import main as longplay

    return longplay(["prepare", *(sys.argv[1:] if argv is None else argv)])


if __name__ == "__main__":
    sys.exit(main())
