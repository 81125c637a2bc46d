"""The command-line arguments that readers of files share: paths, columns and conditions."""

from __future__ import annotations

from argparse import ArgumentParser, ArgumentTypeError, Namespace
from dataclasses import replace
from pathlib import Path
from typing import Any, get_args

from longplay.data_shards.errors import DataError
from longplay.data_shards.readers.columns import (
    NUMERIC_UNITS,
    Columns,
    FeatureColumn,
    IdType,
    TimeType,
    parse_features,
)
from longplay.data_shards.readers.downloads import input_path

_COLUMN_OPTIONS = ("user", "item", "time", "user_type", "item_type", "time_type", "time_unit", "time_scale")


def add_paths_argument(parser: ArgumentParser) -> None:
    """Add the paths of a reader of files in any place."""
    parser.add_argument(
        "paths", type=input_path, nargs="+", metavar="PATH", help="files, folders, patterns or URLs"
    )


def add_file_arguments(parser: ArgumentParser) -> None:
    """Add the arguments that `file_options` reads."""
    add_paths_argument(parser)
    default = Columns()
    for role, more in (("user", ""), ("item", ""), ("time", "; none: the order of the rows")):
        meaning = f"column of the {role}{more} (default: %(default)s)"
        parser.add_argument(f"--{role}", default=getattr(default, role), metavar="COLUMN", help=meaning)
    for role in ("user", "item"):
        meaning = f"type of the {role} ids (default: detected from the first rows)"
        parser.add_argument(f"--{role}-type", choices=get_args(IdType), help=meaning)
    meaning = "integer, decimal (seconds) or date (default: detected from the first rows)"
    parser.add_argument("--time-type", choices=get_args(TimeType), help=meaning)
    meaning = "unit of integer times; with it, times are shown and given as dates (default: unknown)"
    parser.add_argument("--time-unit", choices=NUMERIC_UNITS, help=meaning)
    meaning = "multiply times that are numbers by N and round (default: %(default)s)"
    parser.add_argument("--time-scale", type=int, default=default.time_scale, metavar="N", help=meaning)
    _add_selecting_arguments(parser)


def file_options(args: Namespace) -> dict[str, Any]:
    """Return the attributes `paths`, `columns` and `options` of a `FileSource` that the arguments give."""
    given = {name: getattr(args, name) for name in _COLUMN_OPTIONS}
    columns = Columns(**given, where=args.where, features=args.features)
    given["time_scale"] = None if args.time_scale == 1 else args.time_scale
    return {"paths": tuple(args.paths), "columns": columns, "options": given | _selecting_options(args)}


def add_preset_arguments(parser: ArgumentParser, help: str) -> None:
    """Add the arguments that `preset_options` reads. `help` describes the path."""
    parser.add_argument("path", type=input_path, metavar="PATH", help=help)
    _add_selecting_arguments(parser)


def preset_options(args: Namespace, columns: Columns) -> dict[str, Any]:
    """Return the attributes `paths`, `columns` and `options` of a `FileSource` of known columns."""
    columns = replace(columns, where=args.where or columns.where, features=args.features)
    return {"paths": (args.path,), "columns": columns, "options": _selecting_options(args)}


def _add_selecting_arguments(parser: ArgumentParser) -> None:
    meaning = "table of the items' titles and other columns: CSV, JSON lines or Parquet"
    parser.add_argument("--items", type=Path, metavar="FILE", help=meaning)
    meaning = "column of the ids in --items (default: that of --item)"
    parser.add_argument("--items-id", metavar="COLUMN", help=meaning)
    meaning = "keep only the rows that meet a condition, such as 'rating >= 4'"
    parser.add_argument("--where", metavar="SQL", help=meaning)
    meaning = "columns to keep with the events, such as genre:categorical,price:float"
    parser.add_argument("--features", type=_features, default=(), metavar="LIST", help=meaning)


def _selecting_options(args: Namespace) -> dict[str, Any]:
    options = {"where": args.where, "features": ",".join(map(str, args.features)) or None}
    return options | {"items": args.items and str(args.items), "items_id": args.items_id}


def _features(text: str) -> tuple[FeatureColumn, ...]:
    """Return `parse_features(text)`. An error has the type whose message argparse prints."""
    try:
        return parse_features(text)
    except DataError as error:
        raise ArgumentTypeError(str(error)) from error
