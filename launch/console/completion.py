"""Shell completion of commands, options, recipes and settings."""

import argparse
from pathlib import Path
from typing import Any

import shtab

from longplay.launch.settings.common_arguments import data_location
from longplay.launch.settings.recipes import RECIPES


def completion_script(parser: argparse.ArgumentParser, shell: str) -> str:
    """Return the script that completes the commands of `parser` in `shell` (bash, zsh or tcsh)."""
    _prepare(parser)
    return shtab.complete(parser, shell=shell)


def _prepare(parser: argparse.ArgumentParser) -> None:
    """Mark file and recipe arguments and add the settings, in `parser` and its subparsers."""
    add_settings = parser.get_default("settings")
    if add_settings is not None:
        add_settings(parser, ())
    for action in parser._actions:
        if isinstance(action, argparse._SubParsersAction):
            for subparser in action.choices.values():
                _prepare(subparser)
        elif action.dest == "recipe":
            action.choices = list(RECIPES)
        elif action.type in (Path, data_location):
            completes: Any = action  # an attribute that shtab reads
            completes.complete = shtab.FILE
