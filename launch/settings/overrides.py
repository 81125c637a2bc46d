"""Settings as a user types them: dotted names with values."""

import dataclasses
import difflib
import json
from collections.abc import Iterable, Mapping
from typing import Any, get_args, get_origin, get_type_hints

from longplay.common.printable import printable
from longplay.launch.settings.compatibility import current_name
from longplay.launch.settings.config import RunConfig
from longplay.launch.settings.errors import ConfigError, did_you_mean

# Settings that may be typed without their section.
ALIASES = {"on_bad_shard": "data.on_bad_shard"}

# Names of our settings in other libraries. An error suggests the setting; the name itself is not accepted.
_NAMES_ELSEWHERE = {
    "learning_rate": "train.lr",
    "epochs": "train.max_epochs",
    "num_epochs": "train.max_epochs",
    "early_stopping": "train.patience",
    "batch_size": "data.rows_per_step",
    "num_workers": "data.reader_threads",
    "max_len": "context_length",
    "max_seq_length": "context_length",
    "seq_len": "context_length",
    "sequence_length": "context_length",
    "hidden_size": "encoder.d_model",
    "hidden_dim": "encoder.d_model",
    "embedding_dim": "encoder.d_model",
    "num_layers": "encoder.num_blocks",
    "n_layers": "encoder.num_blocks",
    "n_heads": "encoder.num_heads",
    "dropout_rate": "encoder.dropout",
    "clip_grad_norm": "engine.max_grad_norm",
    "loss": "loss.name",
    "optimizer": "table.optimizer.name",
}

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
    """Set the dotted `name` in nested settings to the value that `text` spells.

    Raises:
        ConfigError: no setting has this name; the message gives the nearest name.
    """
    types = settings_of(RunConfig)
    *sections, last = name.split(".")
    if not is_setting(name, types):
        near = nearest_setting(name, types, prefix="--")
        parts = [item.name for item in dataclasses.fields(RunConfig) if dataclasses.is_dataclass(item.type)]
        raise ConfigError(
            f"--{printable(name)}: unknown setting{near or '; the sections are ' + ', '.join(parts)}"
        )
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


def nearest_setting(name: str, known: Iterable[str], *, prefix: str = "") -> str:
    """Return "; did you mean NAME?" with the setting that the unknown `name` may mean, or "".

    Names are compared without their sections, first with those in the section of `name`.
    """
    section, _, last = name.rpartition(".")
    if last in _NAMES_ELSEWHERE:
        return f"; did you mean {prefix}{_NAMES_ELSEWHERE[last]}?"
    fields = {full: full.rpartition(".")[2] for full in known}
    inside = [field for full, field in fields.items() if full == f"{section}.{field}"]
    near = difflib.get_close_matches(last, inside, n=1) or difflib.get_close_matches(
        last, fields.values(), n=1
    )
    same_field = [full for full, field in fields.items() if field in near]
    return did_you_mean(name, same_field, cutoff=0.0, prefix=prefix)


def read_value(text: str) -> Any:
    """Parse a word: none, comma-separated values, a number, true or false, or else text."""
    if text.lower() in ("none", "null"):
        return None
    if "," in text:
        return [read_value(part.strip()) for part in text.split(",") if part.strip()]
    try:
        return json.loads(text.lower())
    except (ValueError, RecursionError):
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
        flat |= (
            flatten(value, f"{prefix}{name}.") if isinstance(value, Mapping) else {f"{prefix}{name}": value}
        )
    return flat
