"""Settings as a user types them: dotted names with values."""

import dataclasses
import json
from collections.abc import Iterable, Mapping
from typing import Any, get_args, get_origin, get_type_hints

from longplay.launch.settings.compatibility import current_name
from longplay.launch.settings.config import RunConfig
from longplay.launch.settings.errors import ConfigError, did_you_mean

# Settings that may be typed without their section.
ALIASES = {"on_bad_shard": "data.on_bad_shard"}

Nested = dict[str, Any]


def parse_overrides(words: Iterable[str]) -> list[tuple[str, str]]:
    """Split command-line words into (dotted name, text) pairs.

    Args:
        words: "--train.lr", "0.01" pairs, "--train.lr=0.01" or "train.lr=0.01"; hyphens count as
            underscores in names.

    Raises:
        ConfigError: a word is not a setting, or a setting has no value.
    """
    pairs: list[tuple[str, str]] = []
    waiting = list(reversed(list(words)))
    while waiting:
        word = waiting.pop()
        name, equals, value = word.removeprefix("--").partition("=")
        if not equals:
            if not word.startswith("--"):
                raise ConfigError(
                    f"{word!r}: is not a setting; write --section.name value, for example --train.lr 0.001"
                )
            if not waiting or waiting[-1].startswith("--"):
                raise ConfigError(f"{word}: has no value; write {word} VALUE")
            value = waiting.pop()
        name = current_name(name.replace("-", "_"))
        pairs.append((ALIASES.get(name, name), value))
    return pairs


def set_value(nested: Nested, name: str, text: str) -> None:
    """Put the value that `text` spells at the dotted `name` of nested settings.

    Raises:
        ConfigError: no setting has this name; the message gives the nearest name.
    """
    types = settings_of(RunConfig)
    *sections, last = name.split(".")
    if not is_setting(name, types):
        same_field = [full for full in types if full.rpartition(".")[2] == last]
        near = did_you_mean(name, same_field or list(types), cutoff=0.0 if same_field else 0.5, prefix="--")
        parts = [item.name for item in dataclasses.fields(RunConfig) if dataclasses.is_dataclass(item.type)]
        raise ConfigError(f"--{name}: unknown setting{near or '; the sections are ' + ', '.join(parts)}")
    for section in sections:
        nested = nested.setdefault(section, {})
    value = text if text in get_args(types.get(name)) else read_value(text)  # "none" may be a choice
    alone = get_origin(types.get(name)) is tuple and not isinstance(value, list | None)
    nested[last] = [value] if alone else value


def is_setting(name: str, types: Mapping[str, Any]) -> bool:
    """Return whether `name` is a setting, or an entry of one that is a mapping: encoder.options.rank.

    Args:
        name: dotted name.
        types: what `settings_of` returns.
    """
    section = name.rpartition(".")[0]
    return name in types or get_origin(types.get(section)) is dict


def read_value(text: str) -> Any:
    """Return what a word spells: none, comma-separated values, a number, true or false, or the text."""
    if text.lower() in ("none", "null"):
        return None
    if "," in text:
        return [read_value(part.strip()) for part in text.split(",") if part.strip()]
    try:
        return json.loads(text.lower())
    except ValueError:
        return text


def spell_value(value: Any) -> str:
    """Return `value` as a user types it: the inverse of `read_value`."""
    if isinstance(value, tuple | list):
        return ",".join(map(spell_value, value))
    return str(value).lower() if value is None or isinstance(value, bool) else str(value)


def settings_of(kind: Any, prefix: str = "") -> dict[str, Any]:
    """Return dotted name -> type of every setting that a user can type, for a configuration dataclass."""
    found: dict[str, Any] = {}
    types = get_type_hints(kind)
    for item in dataclasses.fields(kind):
        if dataclasses.is_dataclass(types[item.name]):
            found |= settings_of(types[item.name], f"{prefix}{item.name}.")
        elif item.name != "recipe":
            found[prefix + item.name] = types[item.name]
    return found


def flatten(nested: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Return nested settings as dotted name -> value."""
    flat: dict[str, Any] = {}
    for name, value in nested.items():
        flat |= flatten(value, f"{prefix}{name}.") if isinstance(value, Mapping) else {prefix + name: value}
    return flat
