"""Arguments that several commands share: a prepared dataset, a run, and bounded numbers."""

import argparse
from collections.abc import Callable
from pathlib import Path
from typing import Any

from longplay.common.kinds import not_a
from longplay.data_shards.errors import DataError
from longplay.data_shards.storage.locations import Location, parse_location
from longplay.launch.settings.imports import add_import_argument


def data_location(text: str) -> Location:
    """Return the folder or URL that `text` gives, as the type of an argument."""
    try:
        location = parse_location(text)
    except DataError as error:
        raise argparse.ArgumentTypeError(str(error)) from None
    # A folder that does not exist is refused when it is opened.
    other = not_a("dataset", location) if isinstance(location, Path) and location.exists() else None
    if other is not None:
        raise argparse.ArgumentTypeError(f"{other}; give the folder that `longplay prepare` wrote")
    return location


def at_least(least: int) -> Callable[[str], int]:
    """Return the type of an argument that is a whole number of at least `least`."""

    def whole_number(text: str) -> int:
        if not text.isdecimal() or int(text) < least:
            raise argparse.ArgumentTypeError(f"{text!r}: must be a whole number, at least {least}")
        return int(text)

    return whole_number


class Once(argparse.Action):
    """Store the value of an option; refuse the option a second time instead of keeping the last value."""

    def __call__(
        self, parser: argparse.ArgumentParser, args: argparse.Namespace, value: Any, option: str | None = None
    ) -> None:
        given = vars(args).setdefault("_given", set())
        if self.dest in given:
            raise argparse.ArgumentError(self, "is given twice; run the command once for each")
        given.add(self.dest)
        setattr(args, self.dest, value)


def add_data_argument(parser: argparse.ArgumentParser) -> None:
    """Add --data for a command that needs a prepared dataset."""
    parser.add_argument(
        "--data",
        type=data_location,
        required=True,
        metavar="DIR",
        help="folder written by `longplay prepare`, or its URL",
    )


def add_run_arguments(parser: argparse.ArgumentParser) -> None:
    """Add RUN, --import, and the options that select its dataset and its checkpoint."""
    parser.add_argument("run", type=Path, metavar="RUN", help="folder of `longplay train --run`")
    add_import_argument(parser)
    parser.add_argument(
        "--data",
        type=data_location,
        metavar="DIR",
        help="the prepared dataset, if it has moved since training",
    )
    parser.add_argument(
        "--checkpoint",
        default="best",
        metavar="NAME",
        help="best, last, or a name such as step-000000120 (default: best)",
    )


def add_device_argument(parser: argparse.ArgumentParser) -> None:
    """Add --device for a command that computes with a trained model."""
    parser.add_argument(
        "--device",
        choices=("auto", "cpu", "cuda"),
        default="auto",
        help="auto uses the GPU if there is one (default: auto)",
    )
