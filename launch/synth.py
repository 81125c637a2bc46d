"""`longplay synth`: generate raw files of any size in the layout of LFM-1b, KuaiRand-27K or MovieLens-1M."""

from __future__ import annotations

import argparse
import re
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from longplay.data_shards.errors import DataError
from longplay.data_shards.generators.raw_files import RAW_FORMATS, RawSynthetic, check_raw_output, write_raw
from longplay.launch.console.progress import StageProgress
from longplay.launch.console.signals import terminable

_SUFFIXES = {"": 1, "k": 10**3, "m": 10**6, "g": 10**9, "b": 10**9}
_HELP = {
    "lfm1b": "LFM-1b_LEs.txt, listening events",
    "kuairand": "data/log_*.csv of KuaiRand-27K, viewing logs",
    "ml1m": "ratings.dat of MovieLens 1M",
}


def register(subparsers: Any) -> None:
    """Add the command `synth` to the subparsers of `longplay`."""
    parser = subparsers.add_parser(
        "synth",
        description="Generate raw files of any size in the layout of LFM-1b, KuaiRand-27K or MovieLens-1M. "
        "`longplay synth FORMAT --help` lists the options of a format.",
    )
    formats = parser.add_subparsers(dest="format", required=True, metavar="FORMAT")
    for name, original in RAW_FORMATS.items():
        command = formats.add_parser(name, help=_HELP[name])
        command.add_argument(
            "--events",
            required=name != "ml1m",
            default=str(original.events) if name == "ml1m" else None,
            metavar="N",
            help=f"rows to write: 250000, 100M, 1.5G, ... (the original has {original.events})",
        )
        command.add_argument("--out", type=Path, required=True, metavar="DIR", help="folder for the files")
        command.add_argument(
            "--users", metavar="N", help="number of users (default: gives the original's mean history length)"
        )
        command.add_argument(
            "--items",
            default=str(original.items),
            metavar="N",
            help="number of items in the catalog (default: %(default)s)",
        )
        command.add_argument(
            "--seed", default="0", metavar="N", help="seed of the generator (default: %(default)s)"
        )
        command.add_argument("--overwrite", action="store_true", help="replace the files at --out")
    parser.set_defaults(func=run)


def run(args: argparse.Namespace) -> int:
    """Generate the files and return the exit code.

    Raises:
        DataError: an option or the output path is unusable, or the disk is full.
    """
    raw = RawSynthetic(
        format=args.format,
        events=parse_count("events", args.events),
        users=None if args.users is None else parse_count("users", args.users),
        items=parse_count("items", args.items),
        seed=parse_count("seed", args.seed),
    )
    check_raw_output(raw, args.out, overwrite=args.overwrite)
    _print_plan(raw, args.out)
    started = time.perf_counter()
    with terminable(), StageProgress("events") as progress:
        paths = write_raw(raw, args.out, overwrite=args.overwrite, progress=progress)
    seconds = time.perf_counter() - started
    rows = sum(file.num_rows for file in raw.files)
    size = sum(path.stat().st_size for path in paths)
    files = f"{paths[0]}" if len(paths) == 1 else f"{len(paths)} files in {paths[0].parent}"
    print(
        f"wrote {rows:,} rows, {size:,} bytes in {seconds:,.1f} s "
        f"({rows / seconds / 1e6:,.2f} M rows/s): {files}"
    )
    return 0


def parse_count(name: str, text: str) -> int:
    """Parse `250000`, `250_000`, `100M` or `1.5G`.

    Raises:
        DataError: `text` is anything else; the message names the option `--name`.
    """
    match = re.fullmatch(r"(\d+(?:_\d+)*)(?:\.(\d+))?([kmgb]?)", text.strip().lower())
    if match:
        whole, fraction, suffix = match[1].replace("_", ""), match[2] or "", match[3]
        number, rest = divmod(int(whole + fraction) * _SUFFIXES[suffix], 10 ** len(fraction))
        if not rest:
            return number
    raise DataError(f"--{name} is {text!r}, but must be an integer such as 250000, 500K, 100M or 1.5G")


def _print_plan(raw: RawSynthetic, out: Path) -> None:
    print(
        f"synth {raw.format}: {raw.events:,} events of {raw.num_users:,} users, catalog of "
        f"{raw.num_items:,} items, seed {raw.seed}; about {raw.estimated_bytes():,} bytes"
    )
    for file in raw.files:
        extra = ", in addition to the events" if "log_random" in file.path else ""
        print(f"  {out / file.path}  ({file.num_rows:,} rows{extra})", flush=True)


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command alone: `python -m longplay.launch.synth`."""
    from longplay.launch.cli import main as longplay

    return longplay(["synth", *(sys.argv[1:] if argv is None else argv)])


if __name__ == "__main__":
    sys.exit(main())
