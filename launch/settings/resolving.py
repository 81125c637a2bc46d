"""Combine a recipe, a YAML file and overrides into a validated configuration."""

import copy
import dataclasses
import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import yaml
from pydantic import TypeAdapter, ValidationError

from longplay.common.json_files import JsonFileError, read_content
from longplay.common.printable import printable
from longplay.launch.settings.compatibility import rename_in_place
from longplay.launch.settings.config import RunConfig
from longplay.launch.settings.errors import ConfigError, one_line
from longplay.launch.settings.overrides import (
    Nested,
    flatten,
    is_setting,
    nearest_setting,
    parse_overrides,
    set_value,
    settings_of,
)

# Settings of the whole run that are copied into a section.
SHARED = (("encoder", "context_length"), ("data", "context_length"), ("data", "seed"))

_MOST_LEVELS = 20
_ADAPTER = TypeAdapter(RunConfig)


def resolve(
    recipe: str, base: Mapping[str, Any], overrides: Iterable[str], *, file: Path | None = None
) -> RunConfig:
    """Return the configuration of a run: the recipe, then a YAML file, then overrides; the last one wins.

    Args:
        recipe: the recipe's name, which the configuration records.
        base: nested settings, as the recipe returns them.
        overrides: words as `parse_overrides` takes them.
        file: what `longplay config` prints; settings that it leaves out are the recipe's.

    Raises:
        ConfigError: a setting is invalid; the message names it, its value, the rule and, if possible, the
            nearest valid value.
    """
    nested: Nested = copy.deepcopy(dict(base))
    if file is not None:
        _merge(nested, read_yaml(file))
    for name, value in parse_overrides(overrides):
        set_value(nested, name, value)
    for part, name in SHARED:
        if name in nested.get(part, {}):
            raise ConfigError(f"{part}.{name}: set --{name}, which applies to every section")
        nested.setdefault(part, {})[name] = nested.get(name)
    return validate({**nested, "recipe": recipe})


def validate(nested: Nested) -> RunConfig:
    """Return the configuration that complete nested settings describe.

    Raises:
        ConfigError: a setting is unknown or its value is not allowed.
    """
    try:
        return _ADAPTER.validate_python(nested)
    except ValidationError as error:
        raise ConfigError(one_line(error)) from None


def with_setting(config: RunConfig, name: str, text: str) -> RunConfig:
    """Return `config` with the value that `text` spells for the setting `name`.

    Raises:
        ConfigError: the value is not allowed.
    """
    nested = to_json(config)
    set_value(nested, name, text)
    for part, shared in SHARED:
        nested[part][shared] = nested[shared]
    return validate(nested)


def to_json(config: RunConfig) -> Nested:
    """Return the configuration as nested JSON values."""
    return json.loads(json.dumps(dataclasses.asdict(config)))


def to_yaml(config: RunConfig) -> str:
    """Return the configuration as YAML that `read_yaml` accepts."""
    nested = to_json(config)
    del nested["recipe"]
    for part, name in SHARED:
        del nested[part][name]
    return yaml.safe_dump(nested, sort_keys=False)


def read_yaml(file: Path) -> Nested:
    """Read nested settings from a YAML file.

    Raises:
        ConfigError: the file cannot be read, is not YAML, or names a setting that does not exist.
    """
    try:
        nested = _parse_yaml(read_content(file).decode()) or {}
    except FileNotFoundError as error:
        raise ConfigError(f"--config {file}: cannot be read ({error.strerror})") from None
    except JsonFileError as error:
        raise ConfigError(f"--config {error}") from None
    except (ValueError, yaml.YAMLError) as error:
        raise ConfigError(f"--config {file}: cannot be read ({' '.join(str(error).split())})") from None
    if not isinstance(nested, dict):
        raise ConfigError(
            f"--config {file}: must contain settings; `longplay config RECIPE` prints an example"
        )
    rename_in_place(nested)
    known = settings_of(RunConfig)
    for name in flatten(nested):
        if not is_setting(name, known):
            near = nearest_setting(name, known)
            raise ConfigError(f"--config {file}: {printable(name)}: unknown setting{near}")
    return nested


def _parse_yaml(text: str) -> Any:
    """Parse YAML without aliases, which can stand for a document of any size, and without deep nesting.

    Raises:
        ValueError, yaml.YAMLError: the text is not such YAML.
    """
    depth = 0
    for event in yaml.parse(text, Loader=yaml.SafeLoader):
        if isinstance(event, yaml.AliasEvent):
            raise ValueError(
                f"line {event.start_mark.line + 1}: aliases such as *{event.anchor} are not read"
            )
        depth += isinstance(event, yaml.CollectionStartEvent) - isinstance(event, yaml.CollectionEndEvent)
        if depth > _MOST_LEVELS:
            raise ValueError(f"line {event.start_mark.line + 1}: more than {_MOST_LEVELS} levels of nesting")
    return yaml.safe_load(text)


def _merge(below: Nested, above: Mapping[str, Any]) -> None:
    for name, value in above.items():
        if isinstance(value, Mapping) and isinstance(below.get(name), dict):
            _merge(below[name], value)
        else:
            below[name] = value
