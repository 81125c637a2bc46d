"""Arguments of the commands that take a recipe and settings, and the list of settings in their --help."""

import argparse
import dataclasses
import types
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal, Union, get_args, get_origin, get_type_hints

from docstring_parser import parse

from longplay.launch.settings.config import RunConfig
from longplay.launch.settings.imports import add_import_argument
from longplay.launch.settings.overrides import settings_of, spell_value
from longplay.launch.settings.recipes import RECIPES, get_recipe
from longplay.launch.settings.resolving import SHARED, resolve
from longplay.models.base.registry import ENCODERS
from longplay.models.losses.base import LOSSES

# Settings whose values are the names of a registry.
_REGISTRIES: dict[str, Mapping[str, Any]] = {"encoder.model": ENCODERS, "loss.name": LOSSES}
_HIDDEN = {f"{part}.{name}" for part, name in SHARED}


def add_recipe_arguments(parser: argparse.ArgumentParser) -> None:
    """Add RECIPE, --config and --import; every other option of the command line is a setting."""
    parser.add_argument(
        "recipe", metavar="RECIPE", help=f"one of {', '.join(RECIPES)}, or a recipe of your own"
    )
    parser.add_argument(
        "--config",
        type=Path,
        metavar="FILE.yaml",
        help="settings as `longplay config RECIPE` prints them; they override the recipe",
    )
    add_import_argument(parser)
    parser.set_defaults(takes_overrides=True, settings=settings_in_help)


def resolve_arguments(args: argparse.Namespace, overrides: Sequence[str]) -> RunConfig:
    """Return the configuration that a command line selects."""
    return resolve(args.recipe, get_recipe(args.recipe), overrides, file=args.config)


def settings_in_help(parser: argparse.ArgumentParser, words: Sequence[str]) -> None:
    """Add every setting to `parser`, with its meaning and its default in the recipe that `words` name.

    Call it before the help is printed, not before the arguments are parsed.
    """
    early = argparse.ArgumentParser(add_help=False)
    add_import_argument(early)
    early.add_argument("--config", type=Path)
    given, rest = early.parse_known_args(words)
    recipe = next((word for word in rest if word in RECIPES), None)
    config = None if recipe is None else resolve(recipe, get_recipe(recipe), (), file=given.config)
    usage = " ".join(parser.format_usage().removeprefix("usage: ").split())
    parser.usage = f"{usage} [--section.name VALUE ...]"
    _add_section(parser, "run", RunConfig, config, "")


def _add_section(parser: argparse.ArgumentParser, title: str, kind: Any, config: Any, prefix: str) -> None:
    """Add a group with the settings of the dataclass `kind`, and one for each dataclass within it."""
    docstring = parse(kind.__doc__ or "")
    meanings = {param.arg_name: param.description or "" for param in docstring.params}
    group = parser.add_argument_group(f"{title} settings", docstring.short_description)
    typed = get_type_hints(kind, include_extras=True)
    parts: list[str] = []
    for item in dataclasses.fields(kind):
        name = prefix + item.name
        if dataclasses.is_dataclass(typed[item.name]):
            parts.append(item.name)
        elif name != "recipe" and name not in _HIDDEN:
            spelling = "|".join(_REGISTRIES[name]) if name in _REGISTRIES else _spelling(typed[item.name])
            meaning = " ".join(meanings[item.name].split())
            group.add_argument(
                f"--{name}.NAME" if get_origin(typed[item.name]) is dict else f"--{name}",
                metavar=spelling,
                choices=_choices(spelling),  # for shell completion
                help=f"{meaning} (default: {_default(item, config)})".replace("%", "%%"),
            )
    for part in parts:
        inner = None if config is None else getattr(config, part)
        _add_section(parser, f"{prefix}{part}", typed[part], inner, f"{prefix}{part}.")


def _default(item: dataclasses.Field[Any], config: Any) -> str:
    """Return a setting's value in `config`, or its general default, as a user types it."""
    if config is not None:
        value = getattr(config, item.name)
    elif item.default_factory is not dataclasses.MISSING:
        value = item.default_factory()
    else:
        value = item.default
    return (
        "by recipe" if value is dataclasses.MISSING else "none" if value in ({}, ()) else spell_value(value)
    )


def _spelling(kind: Any) -> str:
    """Return how a value of this type is typed, for example "INT|none"."""
    origin, inner = get_origin(kind), get_args(kind)
    if origin is Annotated:
        return _spelling(inner[0])
    if origin in (Union, types.UnionType):
        return "|".join("none" if each is type(None) else _spelling(each) for each in inner)
    if origin is Literal:
        return "|".join(map(str, inner))
    if origin is tuple:
        return ",".join("..." if each is Ellipsis else _spelling(each) for each in inner)
    if origin is dict:
        return "VALUE"
    return {bool: "true|false", str: "TEXT"}.get(kind, getattr(kind, "__name__", "VALUE").upper())


def _choices(spelling: str) -> list[str] | None:
    """Return the values of a setting that has a fixed set of them; None for other settings."""
    choices = spelling.split("|")
    return choices if all(choice.islower() or choice.isdigit() for choice in choices) else None


def options_of_settings() -> list[str]:
    """Return every setting as an option: "--train.lr"."""
    types = settings_of(RunConfig)
    return [
        f"--{name}" for name, kind in types.items() if name not in _HIDDEN and get_origin(kind) is not dict
    ]
