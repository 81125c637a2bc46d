"""A user's own modules, which register encoders, losses, metrics, readers or recipes on import."""

import argparse
import importlib
from collections.abc import Iterable
from typing import Any

from longplay.launch.settings.errors import ConfigError

_imported: list[str] = []


def add_import_argument(parser: argparse.ArgumentParser) -> None:
    """Add --import, which may be repeated; the module is imported while the command line is parsed."""
    parser.add_argument(
        "--import",
        dest="imports",
        action=ImportAction,
        default=[],
        metavar="MODULE",
        help="import this Python module first, for example my_package.my_encoder; may be repeated",
    )


class ImportAction(argparse.Action):
    """Imports a module and appends its name."""

    def __call__(self, parser: Any, namespace: argparse.Namespace, values: Any, option: Any = None) -> None:
        import_module(values)
        setattr(namespace, self.dest, [*getattr(namespace, self.dest), values])


def import_module(name: str) -> None:
    """Import a user's module.

    Raises:
        ConfigError: the module or a module that it imports cannot be imported.
    """
    try:
        importlib.import_module(name)
    except ImportError as error:
        raise ConfigError(
            f"--import {name}: cannot be imported ({error}); install it or add its folder to PYTHONPATH"
        ) from error
    if name not in _imported:
        _imported.append(name)


def imported() -> list[str]:
    """Return the names of the user's modules that this process has imported, in order."""
    return list(_imported)


def check_imports(needed: Iterable[str], run: object) -> None:
    """Check that the modules that `run` needs are imported.

    The names in a run folder are not imported automatically: reading a folder must not execute code.

    Raises:
        ConfigError: a module is not imported; the message gives the --import options to add.
    """
    missing = [name for name in needed if name not in _imported]
    if missing:
        options = " ".join(f"--import {name}" for name in missing)
        raise ConfigError(f"{run}: needs modules that are not imported; add {options}")
