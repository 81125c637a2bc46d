"""`longplay train RECIPE --data DIR --run DIR [--section.name value ...]`: train, validate, save, resume."""

import argparse
import sys
from pathlib import Path
from typing import Any

from longplay.launch.settings.arguments import add_recipe_arguments, resolve_arguments
from longplay.launch.settings.common_arguments import add_data_argument, at_least
from longplay.launch.training.train import train

_PROFILED_STEPS = 20


def register(subparsers: Any) -> None:
    """Add `train` to the `longplay` command."""
    parser = subparsers.add_parser(
        "train",
        description="Train RECIPE on a prepared dataset. --section.name VALUE overrides a setting, for "
        "example --train.lr 0.001 --encoder.num_blocks 2 --context_length 500 --seed 1. "
        "`longplay train RECIPE --help` lists every setting with its default in that recipe.",
    )
    add_recipe_arguments(parser)
    add_data_argument(parser)
    # torchrun under Python 3.11 reads a script's --run as its own --run-path.
    parser.add_argument(
        *("--run", "--run-dir"),
        type=Path,
        required=True,
        metavar="DIR",
        help="folder of this run; an existing run is resumed (use --run-dir under torchrun)",
    )
    parser.add_argument(
        "--profile",
        type=at_least(1),
        nargs="?",
        const=_PROFILED_STEPS,
        default=0,
        metavar="STEPS",
        help=f"profile this number of steps (default {_PROFILED_STEPS}) after a warm-up: print the time of "
        "each part of a step, and write RUN/profile/rank-R.json.gz for Chrome's trace viewer",
    )
    parser.set_defaults(func=run)


def run(args: argparse.Namespace, overrides: list[str]) -> int:
    """Train the run and return the exit code."""
    config = resolve_arguments(args, overrides)
    return train(config, args.data, args.run, profile_steps=args.profile)


if __name__ == "__main__":
    from longplay.launch.cli import main

    sys.exit(main(["train", *sys.argv[1:]]))
