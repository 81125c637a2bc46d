"""List every setting of a run as Markdown tables, from the configuration dataclasses and their docstrings."""

from __future__ import annotations

import dataclasses
import types
from collections.abc import Iterator
from typing import Annotated, Any, Literal, NamedTuple, Union, get_args, get_origin, get_type_hints

import docstring_parser

from longplay.launch.settings.config import RunConfig

# Fields that are not typed by a user: the first is the recipe itself, the others follow settings of the run.
NOT_SETTINGS = {"recipe", "encoder.context_length", "data.context_length", "data.seed"}


class Setting(NamedTuple):
    """One setting: its dotted name, its values, its default as a user types it, and its meaning."""

    name: str
    values: str
    default: str
    meaning: str


def settings_tables() -> str:
    """Return one Markdown table per section."""
    sections: dict[str, list[Setting]] = {}
    for setting in all_settings(RunConfig):
        sections.setdefault(section_of(setting.name), []).append(setting)
    return "\n\n".join(
        "\n".join([f"## {title}", "", *_HEADER, *(row(each) for each in settings)])
        for title, settings in sections.items()
    )


def all_settings(kind: Any, prefix: str = "") -> Iterator[Setting]:
    """Yield the settings of a dataclass and of the dataclasses in it."""
    hints = get_type_hints(kind, include_extras=True)
    parsed = docstring_parser.parse(kind.__doc__ or "", style=docstring_parser.DocstringStyle.GOOGLE)
    meanings = {entry.arg_name: " ".join((entry.description or "").split()) for entry in parsed.params}
    nested = []
    for field in dataclasses.fields(kind):
        name, hint = prefix + field.name, plain(hints[field.name])
        if dataclasses.is_dataclass(hint):
            nested.append((hint, f"{name}."))
        elif name not in NOT_SETTINGS:
            yield Setting(name, values(hint), default(field), meanings.get(field.name, ""))
    for hint, inner in nested:
        yield from all_settings(hint, inner)


def section_of(name: str) -> str:
    """Return the dotted name without its last part: "table.optimizer"."""
    return name.rpartition(".")[0] or "The whole run"


def row(setting: Setting) -> str:
    cells = (f"`--{setting.name}`", setting.values, f"`{setting.default}`", setting.meaning)
    return "| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |"


def plain(hint: Any) -> Any:
    """Return a type without its `Annotated` constraints."""
    return plain(get_args(hint)[0]) if get_origin(hint) is Annotated else hint


def values(hint: Any) -> str:
    """Return the values of a type as a user types them: choices, or the type's name."""
    hint = plain(hint)
    origin, args = get_origin(hint), get_args(hint)
    if origin is Literal:
        return ", ".join(f"`{value}`" for value in args)
    if origin in (Union, types.UnionType):
        return ", ".join("`none`" if arg is type(None) else values(arg) for arg in args)
    if origin is tuple:
        return f"{values(args[0])}s, separated by commas"
    names = {int: "integer", float: "number", bool: "`true`, `false`", str: "text", dict: "values by name"}
    return names.get(origin or hint, getattr(hint, "__name__", str(hint)))


def default(field: dataclasses.Field[Any]) -> str:
    """Return a field's default as a user types it."""
    if field.default_factory is not dataclasses.MISSING:
        value = field.default_factory()
    elif field.default is dataclasses.MISSING:
        return "by recipe"
    else:
        value = field.default
    if value in ({}, ()):
        return "none"
    if isinstance(value, tuple):
        return ",".join(map(str, value))
    return str(value).lower() if value is None or isinstance(value, bool) else str(value)


_HEADER = ("| setting | values | default | meaning |", "|---|---|---|---|")
