"""A user's own modules, which register encoders, losses, metrics, readers or recipes on import."""

import argparse
import importlib
from collections.abc import Iterable
from pathlib import Path

from longplay.launch.settings.errors import ConfigError

_imported: list[str] = []


def add_import_argument(parser: argparse.ArgumentParser) -> None:
    """Add --import, which may be repeated; the module is imported while the command line is parsed."""
    parser.add_argument(
        "--import",
        dest="imports",
        action="append",
        type=import_module,
        default=[],
        metavar="MODULE",
        help="import this Python module first, for example my_package.my_encoder; may be repeated",
    )


def import_module(name: str) -> str:
    """Import a user's module, as the type of an argument; return its name.

    Raises:
        argparse.ArgumentTypeError: the module cannot be imported.
    """
    try:
        importlib.import_module(name)
    except ImportError as error:
        raise argparse.ArgumentTypeError(
            f"{name}: cannot be imported ({error}); put the folder that holds it on PYTHONPATH"
        ) from None
    if name not in _imported:
        _imported.append(name)
    return name


def imported() -> list[str]:
    """Return the names of the user's modules that this process has imported, in order."""
    return list(_imported)


def check_imports(needed: Iterable[str], run: Path) -> None:
    """Check that the modules which the run in folder `run` was trained with are imported.

    They are not imported from the folder's own record: reading a run folder must not execute code.

    Raises:
        ConfigError: names the --import to give.
    """
    missing = [name for name in needed if name not in _imported]
    if missing:
        options = " ".join(f"--import {name}" for name in missing)
        raise ConfigError(f"{run}: was trained with modules of your own; add {options}")
