"""`longplay prepare`: turn raw events into the dataset folder that the other commands read."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

from longplay.common.printable import printable
from longplay.common.sizes import parse_bytes, readable_size
from longplay.data_shards.errors import DataError
from longplay.data_shards.preparation.options import PrepareOptions
from longplay.data_shards.preparation.parts import PASSES, list_parts, merge_parts, prepare_part
from longplay.data_shards.preparation.pipeline import (
    SCRATCH_BYTES_PER_EVENT,
    Prepared,
    check_output,
    prepare_dataset,
)
from longplay.data_shards.preparation.shares import Share
from longplay.data_shards.readers.downloads import downloaded
from longplay.data_shards.readers.registry import READERS
from longplay.data_shards.readers.sources import Source
from longplay.data_shards.readers.tables import FileSource
from longplay.data_shards.storage.manifest import PER_SECOND
from longplay.launch.console.progress import StageProgress
from longplay.launch.console.signals import terminable
from longplay.launch.settings.common_arguments import at_least
from longplay.launch.settings.imports import ImportAction


def register(subparsers: Any) -> None:
    """Add the command `prepare` to the subparsers of `longplay`."""
    parser = subparsers.add_parser(
        "prepare",
        description="Turn raw events into the dataset folder that the other commands read. "
        "`longplay prepare FORMAT --help` lists the options of a format.",
    )
    parser.add_argument(
        "--import",
        dest="imports",
        action=_ImportReaders,
        default=[],
        metavar="MODULE",
        help="import a module that registers your own readers; must precede FORMAT; may be repeated",
    )
    formats = parser.add_subparsers(dest="format", required=True, metavar="FORMAT")
    parser.set_defaults(func=run, formats=formats)
    _add_readers(formats)


class _ImportReaders(ImportAction):
    """Import a module and add a subcommand for each reader that it registers."""

    def __call__(self, parser: Any, namespace: argparse.Namespace, values: Any, option: Any = None) -> None:
        super().__call__(parser, namespace, values, option)
        _add_readers(namespace.formats)


def _add_readers(formats: Any) -> None:
    """Add a subcommand for every registered reader that does not have one."""
    for name, reader in READERS.items():
        if name not in formats.choices:
            parser = formats.add_parser(name, help=reader.help)
            reader.add_arguments(parser)
            _add_common_arguments(parser)


def _add_common_arguments(parser: argparse.ArgumentParser) -> None:
    add, default = parser.add_argument, PrepareOptions()
    add("--out", type=Path, required=True, metavar="DIR", help="folder for the dataset")
    add("--overwrite", action="store_true", help="replace the dataset at --out")
    meaning = "drop users with fewer events (default: %(default)s)"
    add("--min-user-events", type=int, default=default.min_user_events, metavar="N", help=meaning)
    meaning = (
        "drop items with fewer events; items and users are dropped alternately until both limits hold "
        "(default: %(default)s)"
    )
    add("--min-item-events", type=int, default=default.min_item_events, metavar="N", help=meaning)
    meaning = "keep only the latest N events of each user (default: all)"
    add("--max-user-events", type=int, metavar="N", help=meaning)
    meaning = "keep only a user's latest event with each item (default: all)"
    add("--dedup", choices=["latest"], help=meaning)
    meaning = "drop events before TIME, a date or an integer"
    add("--from", dest="from_time", metavar="TIME", help=meaning)
    meaning = "drop events at or after TIME, a date or an integer"
    add("--until", dest="until_time", metavar="TIME", help=meaning)
    meaning = "memory limit, for example 4GiB (default: 4GiB)"
    add("--memory", type=parse_bytes, default=default.memory_bytes, metavar="SIZE", help=meaning)
    meaning = "folder for temporary files (default: the parent of --out)"
    add("--scratch", type=Path, metavar="DIR", help=meaning)
    meaning = "fail if a larger share of the rows is unusable (default: %(default)s)"
    add("--max-bad-fraction", type=float, default=default.max_bad_fraction, metavar="X", help=meaning)
    meaning = "number of tar files (default: by size; a multiple of 24 if there are enough users)"
    add("--shards", type=int, metavar="N", help=meaning)
    meaning = "seed for the order of users and for generated events (default: %(default)s)"
    add("--seed", type=int, default=default.seed, metavar="N", help=meaning)
    add_part = parser.add_mutually_exclusive_group().add_argument
    meaning = "do part K of the N parts of a pass; the parts can run on several machines"
    add_part("--part", type=_parse_share, metavar="K/N", help=meaning)
    meaning = "complete a pass after its N parts; after the last pass, the dataset is complete"
    add_part("--merge", type=at_least(1), metavar="N", help=meaning)
    meaning = "the pass that --part or --merge does: first read, then sort, then write"
    add("--pass", dest="pass_name", choices=PASSES, help=meaning)


def run(args: argparse.Namespace) -> int:
    """Prepare a dataset and return the exit code.

    Raises:
        DataError: the input, an option or the output path is unusable.
    """
    check_output(args.out, overwrite=args.overwrite)
    named = getattr(args, "paths", [getattr(args, "path", None)])
    urls = [path for path in named if isinstance(path, str)]
    if urls and args.pass_name is not None:
        raise DataError(
            f"{urls[0]}: --part reads no URLs; download the file to a file system that all machines share"
        )
    folder = (args.scratch or args.out.absolute().parent) / f"{args.out.name}.downloads"
    with _resumable(), downloaded(urls, folder) as copies:
        for name in {"path", "paths"} & vars(args).keys():
            local = [copies.get(path, path) for path in named]
            setattr(args, name, local if name == "paths" else local[0])
        source = READERS[args.format].open(args)
        if copies and isinstance(source, FileSource):
            source = replace(source, origins={copy: url for url, copy in copies.items()})
        _prepare(args, source)
    return 0


@contextmanager
def _resumable() -> Iterator[None]:
    """End the command on SIGTERM as on Ctrl-C, and print that the same command resumes."""
    with terminable():
        try:
            yield
        except (KeyboardInterrupt, SystemExit):
            print("prepare: stopped; the same command resumes where it stopped", file=sys.stderr, flush=True)
            raise


def _prepare(args: argparse.Namespace, source: Source) -> None:
    options = PrepareOptions(
        min_user_events=args.min_user_events,
        min_item_events=args.min_item_events,
        max_user_events=args.max_user_events,
        dedup_latest=args.dedup == "latest",
        from_time=_parse_time(args.from_time, "--from", source),
        until_time=_parse_time(args.until_time, "--until", source),
        max_bad_fraction=args.max_bad_fraction,
        num_shards=args.shards,
        seed=args.seed,
        overwrite=args.overwrite,
        memory_bytes=args.memory,
        scratch=args.scratch,
        **_item_table(args, source),
    )
    _print_plan(source, options, args.out)
    with StageProgress("events") as progress:
        prepared = _run_passes(args, source, options, progress)
    if isinstance(prepared, str):
        print(prepared)
    else:
        _print_summary(prepared, args.out)


def _run_passes(
    args: argparse.Namespace, source: Source, options: PrepareOptions, progress: StageProgress
) -> Prepared | str:
    """Prepare the dataset, or one pass's part or merge. Return the dataset, or the next step as text."""
    if (args.pass_name is None) != (args.part is None and args.merge is None):
        raise DataError("--pass needs --part K/N or --merge N, and each of these needs --pass")
    if args.part is not None:
        share, num_parts = args.part, args.part.num_parts
        missing = prepare_part(source, args.out, options, args.pass_name, share, progress)
        done = f"pass {args.pass_name}: part {share.part} of {num_parts} is done"
        if missing:
            return f"{done}, {list_parts(missing, num_parts)} not"
        return f"{done}, and so are all others; next: --pass {args.pass_name} --merge {num_parts}"
    if args.merge is not None:
        prepared = merge_parts(source, args.out, options, args.pass_name, args.merge, progress)
        if prepared is None:
            after = PASSES[PASSES.index(args.pass_name) + 1]
            return f"pass {args.pass_name} is complete; next: --pass {after} --part K/{args.merge} for each K"
        return prepared
    return prepare_dataset(source, args.out, options, progress)


def _parse_share(text: str) -> Share:
    """Parse `K/N`.

    Raises:
        ArgumentTypeError: it is not two numbers with 1 <= K <= N.
    """
    part, _, num_parts = text.partition("/")
    if not (part.isdecimal() and num_parts.isdecimal() and 1 <= int(part) <= int(num_parts)):
        raise argparse.ArgumentTypeError(f"{text!r} is not K/N with K from 1 to N, such as 2/8")
    return Share(int(part), int(num_parts))


def _item_table(args: argparse.Namespace, source: Source) -> dict[str, Any]:
    """Return the options of the item table."""
    if not isinstance(source, FileSource) or getattr(args, "items", None) is None:
        return {}
    return {"item_table": args.items, "item_table_id": args.items_id or source.columns.item}


def _print_plan(source: Source, options: PrepareOptions, out: Path) -> None:
    """Print the input, the output, the types of the columns, and the limits of memory and disk space."""
    described = source.describe()
    origin = ", ".join(described["paths"]) or "generated events"
    replacing = " (replaces the existing dataset)" if out.exists() and any(out.iterdir()) else ""
    most = source.max_events()
    scratch = options.scratch or out.absolute().parent
    print(
        f"prepare {described['format']}: {origin} -> {out}{replacing}\n"
        f"{source.summary()}\n"
        f"drops users with fewer than {options.min_user_events} events, numbers items by frequency\n"
        f"at most {most:,} events, {options.memory_bytes / 2**30:g} GiB of memory, up to "
        f"{readable_size(most * SCRATCH_BYTES_PER_EVENT)} of temporary files in {scratch}"
    )


def _parse_time(text: str | None, flag: str, source: Source) -> int | None:
    """Parse an integer in the unit of the stored times or, if that unit is known, an ISO 8601 date.

    A date without a time zone is UTC.

    Raises:
        DataError: `text` is neither an integer nor a date, or is a date and the unit is unknown.
    """
    if text is None:
        return None
    unit = source.time_unit()
    if unit == "index":
        raise DataError(f"{flag} needs times, but this source has none (--time none); leave it out")
    try:
        return int(text)
    except ValueError:
        pass
    try:
        date = datetime.fromisoformat(text)
    except ValueError:
        raise DataError(f"{flag} is {text!r}, but must be a date such as 2013-06-30 or an integer") from None
    if unit is None:
        raise DataError(
            f"{flag} is the date {text!r}, but the unit of the times is unknown; pass --time-unit, or an "
            "integer in the unit of the time column"
        )
    since = (date if date.tzinfo else date.replace(tzinfo=UTC)) - datetime(1970, 1, 1, tzinfo=UTC)
    microseconds = since // timedelta(microseconds=1)
    return -(-microseconds * PER_SECOND[unit] // 10**6)  # rounded up, because times are integers


def _print_summary(prepared: Prepared, out: Path) -> None:
    manifest = prepared.manifest
    if prepared.bad_rows.first:
        print(f"{prepared.bad_rows.num_bad} unusable rows were dropped; the first ones:")
        print("".join(f"  {printable(str(row))}\n" for row in prepared.bad_rows.first), end="")
    if prepared.num_unnamed:
        print(f"{prepared.num_unnamed:,} of {manifest.num_items:,} items are not in --items")
    lines = [
        ("rows in", manifest.rows_in),
        *((f"  dropped, {printable(reason)}", count) for reason, count in manifest.rows_dropped.items()),
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
    """Run the command alone: `python -m longplay.launch.prepare`."""
    from longplay.launch.cli import main as longplay

    return longplay(["prepare", *(sys.argv[1:] if argv is None else argv)])


if __name__ == "__main__":
    sys.exit(main())
