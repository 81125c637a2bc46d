"""`longplay train RECIPE --data DIR --run DIR [--section.name value ...]`: train, validate, save, resume."""

import argparse
import sys
from pathlib import Path
from typing import Any

from longplay.launch.settings.data_arguments import data_location
from longplay.launch.settings.recipes import RECIPES, get_recipe
from longplay.launch.settings.resolving import resolve
from longplay.launch.training.train import train

_PROFILED_STEPS = 20


def register(subparsers: Any) -> None:
    """Add `train` to the `longplay` command."""
    parser = subparsers.add_parser(
        "train",
        help="train a recommender, or go on training it",
        description="Train RECIPE on a prepared dataset. --section.name value overrides a setting of the "
        "recipe, for example --train.lr 0.001 --encoder.num_blocks 2 --context_length 500 --seed 1.",
    )
    add_arguments(parser)
    parser.set_defaults(func=run, takes_overrides=True)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the command's own arguments; everything else is a setting."""
    parser.add_argument("recipe", help=f"one of {', '.join(RECIPES)}")
    parser.add_argument(
        "--data", type=data_location, required=True, help="folder made by `longplay prepare`, or its URL"
    )
    # torchrun under Python 3.11 takes a script's --run for its own --run-path; hence the second name.
    parser.add_argument(
        *("--run", "--run-dir"),
        type=Path,
        required=True,
        metavar="DIR",
        help="folder of this run; an existing one is resumed (under torchrun write --run-dir)",
    )
    parser.add_argument(
        "--profile",
        type=_positive,
        nargs="?",
        const=_PROFILED_STEPS,
        default=0,
        metavar="STEPS",
        help="print where the time of a step goes, and write RUN/profile/rank-R.json.gz for Chrome; "
        f"of {_PROFILED_STEPS} steps unless told, once training is warm",
    )


def _positive(text: str) -> int:
    if not text.isdigit() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"{text!r} is no number of steps; write 1 or more")
    return int(text)


def run(args: argparse.Namespace, overrides: list[str]) -> int:
    """The command; returns its exit code."""
    config = resolve(args.recipe, get_recipe(args.recipe), overrides)
    return train(config, args.data, args.run, profile_steps=args.profile)


if __name__ == "__main__":
    from longplay.launch.cli import main

    sys.exit(main(["train", *sys.argv[1:]]))
