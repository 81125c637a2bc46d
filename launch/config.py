"""`longplay config RECIPE [--config FILE.yaml] [--section.name value ...]`: print all settings of a run."""

import argparse
import sys
from typing import Any

from longplay.launch.settings.arguments import add_recipe_arguments, resolve_arguments
from longplay.launch.settings.resolving import to_yaml


def register(subparsers: Any) -> None:
    """Add `config` to the `longplay` command."""
    parser = subparsers.add_parser(
        "config",
        description="Print the settings of RECIPE, overridden by --config and by --section.name options, as "
        "YAML that `longplay train RECIPE --config FILE.yaml` reads.",
    )
    add_recipe_arguments(parser)
    parser.set_defaults(func=run)


def run(args: argparse.Namespace, overrides: list[str]) -> int:
    """Print the settings and return the exit code."""
    print(to_yaml(resolve_arguments(args, overrides)), end="")
    return 0


if __name__ == "__main__":
    from longplay.launch.cli import main

    sys.exit(main(["config", *sys.argv[1:]]))
