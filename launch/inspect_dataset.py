"""`longplay inspect`: describe a prepared dataset as text, JSON and a figure."""

from __future__ import annotations

import argparse
import dataclasses
import json
import sys
from pathlib import Path
from typing import Any

from longplay.common.kinds import not_a
from longplay.common.printable import printable, short_repr
from longplay.data_shards.audit.audit import audit_dataset
from longplay.data_shards.audit.findings import findings
from longplay.data_shards.errors import DataError
from longplay.data_shards.storage.dataset import Dataset
from longplay.data_shards.storage.inspection import (
    Distribution,
    FeatureSummary,
    Inspection,
    inspect_dataset,
)
from longplay.data_shards.storage.verification import find_problems
from longplay.launch.console.progress import track_shards, track_steps
from longplay.launch.reports.audit_text import print_audit
from longplay.launch.reports.inspection_plot import draw

PNG_NAME = "inspect.png"
_EXIT_PROBLEMS = 1


def register(subparsers: Any) -> None:
    """Add the command `inspect` to the subparsers of `longplay`."""
    parser = subparsers.add_parser(
        "inspect",
        description="Describe a prepared dataset as text, JSON and a figure.",
    )
    parser.add_argument("data", type=Path, metavar="DIR", help="dataset folder written by `longplay prepare`")
    parser.add_argument("--json", action="store_true", help="print JSON instead of text")
    parser.add_argument(
        "--png", type=Path, metavar="FILE", help=f"file for the figure (default: DIR/{PNG_NAME})"
    )
    parser.add_argument(
        "--verify",
        action="store_true",
        help="first read all files and check every checksum and count; exit with 1 if anything is wrong",
    )
    parser.add_argument(
        "--audit", action="store_true", help="also measure what makes results on this dataset untrustworthy"
    )
    parser.set_defaults(func=run)


def run(args: argparse.Namespace) -> int:
    """Describe the dataset and return the exit code.

    Raises:
        DataError: the folder is not a dataset, or the dataset is damaged.
        OSError: the file of `--png` cannot be written.
    """
    if ":/" in str(args.data) and not args.data.exists():
        raise DataError(f"{args.data}: inspect reads folders, not URLs; run it where the dataset's files are")
    other = not_a("dataset", args.data)
    if other is not None:
        raise DataError(f"{other}; give the folder that `longplay prepare` wrote")
    if args.verify:
        problems = find_problems(args.data, track_shards)
        if problems:
            print(
                json.dumps({"problems": problems}, indent=1)
                if args.json
                else "\n".join(map(printable, problems))
            )
            return _EXIT_PROBLEMS
    dataset = Dataset.open(args.data, cache_bytes=0)
    found = inspect_dataset(dataset, track_shards, time_unit_s=dataset.manifest.time_unit_s)
    audit = audit_dataset(dataset, track_steps) if args.audit else None
    if args.json:
        content = dataclasses.asdict(found)
        if args.verify:
            content["verified"] = True
        if audit is not None:
            lines = [dataclasses.asdict(line) for line in findings(audit)]
            content["audit"] = {**dataclasses.asdict(audit), "findings": lines}
        print(json.dumps(content, indent=1))
    else:
        print(_as_text(found), end="")
        if args.verify:
            print("verified: all checksums and counts match the content")
        if audit is not None:
            print()
            print_audit(audit, dataset.num_users)
    note = _write_png(dataset, found, args.png, args.data / PNG_NAME)
    print(note, file=sys.stderr if args.json else sys.stdout)
    return 0


def _write_png(dataset: Dataset, found: Inspection, chosen: Path | None, default: Path) -> str:
    """Write the figure and return a status line. Raise only if the user chose the file."""
    path = chosen or default
    try:
        draw(dataset, found, path)
    except OSError as error:
        if chosen is not None:
            raise
        return f"no figure: {path} cannot be written ({error.strerror}); choose a file with --png"
    return f"figure: {path}"


def _as_text(found: Inspection) -> str:
    sections = [
        [("dataset", found.dataset_id), *_source_lines(found)],
        [
            ("rows in", f"{found.rows_in:,}"),
            *((f"  dropped, {reason}", f"{count:,}") for reason, count in found.rows_dropped.items()),
            ("events", f"{found.num_events:,}"),
            ("users", f"{found.num_users:,}"),
            ("items", f"{found.num_items:,}"),
            *_id_lines(found),
            ("density", f"{found.density:.4%} of all (user, item) pairs"),
            (
                "repeats",
                f"{found.repeat_fraction:.2%} of events: the user had an earlier event with the item",
            ),
            ("ties", f"{found.tie_fraction:.2%} of events: at the same time as the user's previous event"),
            *_time_lines(found),
        ],
        *([[("features", ""), *map(_feature_line, found.features)]] if found.features else []),
        [("events per user", ""), *_distribution_lines(found.lengths)],
        [
            ("events per item", ""),
            *_distribution_lines(found.popularity.counts),
            *(
                (f"  top {name} of the items", f"{share:.2%} of events")
                for name, share in found.popularity.top_shares.items()
            ),
            ("  items with one event", f"{found.popularity.num_single:,}"),
            ("  Gini", f"{found.popularity.gini:.4f}"),
        ],
        *_item_sections(found),
        [
            ("shards", f"{found.num_shards:,}"),
            ("  events, min/median/max", " / ".join(f"{count:,}" for count in found.shard_events.values())),
            ("  bytes", f"{found.num_bytes:,}"),
            ("  bytes per event", f"{found.bytes_per_event:.2f}"),
        ],
    ]
    width = max(len(name) for lines in sections for name, _ in lines)
    texts = (
        "".join(f"{printable(f'{name:<{width}}  {value}'.rstrip())}\n" for name, value in it)
        for it in sections
    )
    return "\n".join(texts)


def _item_sections(found: Inspection) -> list[list[tuple[str, str]]]:
    """Describe the additional columns of the items and the most frequent items; [] without such columns."""
    columns = [
        (f"  {printable(name)}", column["type"] + _of_items(column["present"]))
        for name, column in found.item_columns.items()
    ]
    top = [
        (f"  {printable(str(item['item_id']))}", f"{item['count']:,}  {printable(item['title'] or '')}")
        for item in found.top_items
    ]
    sections = ([("item columns", ""), *columns], [("most frequent items", ""), *top])
    return [lines for lines in sections if len(lines) > 1]


def _of_items(present: float | None) -> str:
    return "" if present is None else f", {present:.2%} of items"


def _source_lines(found: Inspection) -> list[tuple[str, str]]:
    source = found.source
    options = " ".join(f"{name}={value}" for name, value in source.get("options", {}).items())
    return [
        ("format", str(source.get("format", "unknown"))),
        *(("path", str(path)) for path in source.get("paths", [])),
        *([("options", options)] if options else []),
    ]


def _id_lines(found: Inspection) -> list[tuple[str, str]]:
    """Describe string ids; without these lines, ids are integers."""
    strings = {name: ids["example"] for name, ids in found.original_ids.items() if ids["type"] == "string"}
    return [
        (f"  ids of {name}", f"strings such as {short_repr(example)}") for name, example in strings.items()
    ]


def _time_lines(found: Inspection) -> list[tuple[str, str]]:
    lines = [("times", f"{found.time_range[0]} to {found.time_range[1]}")]
    if found.time_range_utc is not None:
        lines.append(("  in UTC", f"{found.time_range_utc[0]} to {found.time_range_utc[1]}"))
    return lines


def _feature_line(found: FeatureSummary) -> tuple[str, str]:
    info, missing = found.info, f"{found.missing_fraction:.2%} missing"
    if info.kind == "categorical":
        values = f"{info.num_values:,} values"
        if found.most_frequent is not None:
            values += (
                f", most frequent {short_repr(found.most_frequent)} ({found.most_frequent_fraction:.2%})"
            )
    elif info.least is None:
        values = "no value"
    else:
        values = f"{info.least:g} to {info.most:g}, mean {info.mean:g}, std {info.std:g}"
    return f"  {info.name}", f"{info.kind}, {values}, {missing}"


def _distribution_lines(found: Distribution) -> list[tuple[str, str]]:
    values = {"min": found.min, **found.quantiles, "max": found.max}
    width = max(len(f"{value:,}") for value in values.values())
    return [
        *((f"  {name}", f"{value:>{width},}") for name, value in values.items()),
        ("  mean", f"{found.mean:>{width + 3},.2f}"),
    ]


if __name__ == "__main__":
    from longplay.launch.cli import main

    sys.exit(main(["inspect", *sys.argv[1:]]))
