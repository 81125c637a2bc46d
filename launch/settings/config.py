"""A run's whole configuration: a recipe, dotted overrides on top, checked before anything starts."""

import dataclasses
import difflib
import json
import math
import sys
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, get_origin, get_type_hints

from pydantic import TypeAdapter, ValidationError

from longplay.data_shards.stream.epoch_order import StreamConfig
from longplay.distributed.checkpoints.writer import Background
from longplay.distributed.engine import EngineConfig
from longplay.distributed.table.item_table import ItemTableConfig
from longplay.models.base.config import EncoderConfig
from longplay.models.losses.losses import LossConfig


class ConfigError(ValueError):
    """A setting is unknown, malformed, out of range, or at odds with another; the message says what to do."""


@dataclass(frozen=True, kw_only=True)
class TrainConfig:
    """How long a run trains, with which learning rates, and how often it looks at itself.

    Attributes:
        lr: after `warmup_steps`; falls by `decay` to `final_lr_fraction` of it over `max_epochs`.
        max_epochs: passes over the training events; the schedule spans them.
        max_steps: stop after this many steps all the same (the schedule does not change); None = no bound.
        max_minutes: stop once training, evaluation left out, has taken this long; None = no bound.
        eval_every_steps: validate every so many steps; None = after each epoch.
        metric: what "best" means, on the validation split.
        patience: stop after this many validations in a row without a better metric; None = never.
        checkpoint_every_steps: save every so many steps; None = at each validation.
        keep_checkpoints: how many of the newest to keep, beside the best; with one, damage to it may lose
            the run.
        background_save: whether checkpoints are written while training goes on, from a copy in host memory;
            `auto`: if half of the free memory can hold it.
        timeout_s: without any progress for this long the rank that is behind is taken for hanging, and all
            end.
    """

    lr: float = 1e-3
    warmup_steps: int = 100
    decay: Literal["none", "linear", "cosine"] = "cosine"
    final_lr_fraction: float = 0.05
    max_epochs: int = 20
    max_steps: int | None = None
    max_minutes: float | None = None
    eval_every_steps: int | None = None
    metric: str = "full_unseen/ndcg@10"
    patience: int | None = None
    checkpoint_every_steps: int | None = None
    keep_checkpoints: int = 2
    background_save: Background = "auto"
    log_every_steps: int = 10
    device: Literal["auto", "cpu", "cuda"] = "auto"
    timeout_s: float = 600.0

    def __post_init__(self) -> None:
        for name in ("lr", "timeout_s", "max_epochs", "keep_checkpoints", "log_every_steps"):
            if not 0 < getattr(self, name) < math.inf:
                raise ValueError(f"{name}={getattr(self, name)}: must be above 0 and finite")
        for name in ("max_steps", "max_minutes", "eval_every_steps", "patience", "checkpoint_every_steps"):
            value = getattr(self, name)
            if value is not None and not value > 0:
                raise ValueError(f"{name}={value}: must be above 0, or none for no such bound")
        if self.warmup_steps < 0:
            raise ValueError(f"warmup_steps={self.warmup_steps}: must be at least 0")
        if not 0 <= self.final_lr_fraction <= 1:
            raise ValueError(f"final_lr_fraction={self.final_lr_fraction}: must be from 0 to 1")


@dataclass(frozen=True, kw_only=True)
class EvaluationConfig:
    """How a split is evaluated.

    Attributes:
        rows_per_batch: packed rows encoded at once by each rank.
        queries_per_pass: about how many users, of all ranks together, are ranked in one pass over the table.
        cutoffs: the K of HR@K and NDCG@K.
        num_sampled: negatives of the literature's sampled ranking; names its metrics, such as sampled100.
        max_validation_users: validate during training on this many users, chosen by the seed; None = all.
    """

    rows_per_batch: int = 64
    queries_per_pass: int = 2048
    cutoffs: tuple[int, ...] = (5, 10, 20)
    num_sampled: int = 100
    max_validation_users: int | None = None

    def __post_init__(self) -> None:
        for name in ("rows_per_batch", "queries_per_pass", "num_sampled"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name}={getattr(self, name)}: must be at least 1")
        if not self.cutoffs or min(self.cutoffs) < 1:
            raise ValueError(f"cutoffs={self.cutoffs}: must be numbers of at least 1, for example 5,10,20")
        if self.max_validation_users is not None and self.max_validation_users < 1:
            raise ValueError(
                f"max_validation_users={self.max_validation_users}: must be at least 1, or none for all"
            )

    def metric_names(self) -> list[str]:
        """What an evaluation measures, as `train.metric` names it: "full_unseen/ndcg@10"."""
        kinds = ("full", "full_unseen", f"sampled{self.num_sampled}")
        measures = ["mrr", *(f"{name}@{cutoff}" for name in ("hit", "ndcg") for cutoff in self.cutoffs)]
        return [f"{kind}/{measure}" for kind in kinds for measure in measures]


@dataclass(frozen=True, kw_only=True)
class RunConfig:
    """All that decides a run's result, and how it is run; `context_length` and `seed` reach every part."""

    recipe: str
    seed: int
    context_length: int
    encoder: EncoderConfig
    loss: LossConfig = field(default_factory=LossConfig)
    table: ItemTableConfig = field(default_factory=ItemTableConfig)
    engine: EngineConfig = field(default_factory=EngineConfig)
    data: StreamConfig
    train: TrainConfig = field(default_factory=TrainConfig)
    evaluation: EvaluationConfig = field(default_factory=EvaluationConfig)

    def __post_init__(self) -> None:
        if self.table.update == "zero_dense" and self.engine.zero_stage != 3:
            raise ValueError(
                f"engine.zero_stage={self.engine.zero_stage}: table.update=zero_dense needs 3, as it writes "
                "into ZeRO-3's gradient partition; set --engine.zero_stage 3 or --table.update row_sparse"
            )
        if self.table.placement == "host" and self.loss.name == "full_softmax":
            raise ValueError(
                "table.placement=host: loss.name=full_softmax visits every row at each step; "
                "take another loss, such as --loss.name sampled_softmax, or --table.placement device"
            )
        measured = self.evaluation.metric_names()
        if self.train.metric not in measured:
            near = difflib.get_close_matches(self.train.metric, measured, n=1, cutoff=0.0)
            raise ValueError(
                f"train.metric={self.train.metric!r}: is not measured with evaluation.cutoffs "
                f"{self.evaluation.cutoffs}; did you mean {near[0]}?"
            )


# What may differ between a run folder's first command and a later one: it does not change what a step
# computes, or only says how long to go on.
_MAY_CHANGE = (
    "train",
    "evaluation",
    "engine.zero_stage",
    "table.placement",
    "engine.reduce_bucket_elements",
    "data.prefetch_steps",
    "data.reader_threads",
    "data.on_bad_shard",
)

# Former names of settings. Commands and run folders that use them are still understood.
_RENAMED = {
    "encoder.scan": "encoder.scan_backend",
    "data.workers": "data.reader_threads",
    "engine.accumulation": "engine.gradient_accumulation_steps",
    "engine.clip_norm": "engine.max_grad_norm",
}

# Settings that may be typed without their section.
_ALIASES = {"on_bad_shard": "data.on_bad_shard"}

# Settings of the whole run that a part holds too.
_SHARED = (("encoder", "context_length"), ("data", "context_length"), ("data", "seed"))

Nested = dict[str, Any]


def resolve(recipe: str, base: Mapping[str, Any], overrides: Iterable[str]) -> RunConfig:
    """Apply `overrides` to a recipe's settings and check the whole.

    Args:
        recipe: the recipe's name, kept for the record.
        base: nested settings, as the recipe returns them.
        overrides: "--train.lr", "0.01" pairs, "--train.lr=0.01" or "train.lr=0.01".
    Raises:
        ConfigError: names the field, the value, the rule and, where there is one, the nearest valid value.
    """
    nested: Nested = json.loads(json.dumps(base))
    for name, value in parse_overrides(overrides):
        _set(nested, name, value)
    for part, name in _SHARED:
        if name in nested.get(part, {}):
            raise ConfigError(f"{part}.{name}: set --{name}, which reaches every part")
        nested.setdefault(part, {})[name] = nested.get(name)
    return _validate({"recipe": recipe, **nested})


def from_json(saved: Mapping[str, Any]) -> RunConfig:
    """Rebuild the configuration of a run folder.

    Raises:
        ConfigError: the folder was written by a version with other settings.
    """
    nested = json.loads(json.dumps(saved))
    for old, new in _RENAMED.items():
        section, _, field_name = old.partition(".")
        part = nested.get(section)
        if isinstance(part, dict) and field_name in part:
            part[new.partition(".")[2]] = part.pop(field_name)
    return _validate(nested)


def to_json(config: RunConfig) -> Nested:
    """The configuration as nested JSON values."""
    return json.loads(json.dumps(dataclasses.asdict(config)))


def changed_settings(old: RunConfig, new: RunConfig) -> list[str]:
    """Settings of `new` that a run begun with `old` cannot take on, as "name: old -> new" lines."""
    before, after = _flatten(to_json(old)), _flatten(to_json(new))
    fixed = [name for name in after if not any(name == f or name.startswith(f + ".") for f in _MAY_CHANGE)]
    return [
        f"{n}: {before.get(n)} -> {after[n]}" for n in fixed if before.get(n) != after[n] and n != "recipe"
    ]


def parse_overrides(words: Iterable[str]) -> list[tuple[str, str]]:
    """Split command-line words into (dotted name, text) pairs.

    Raises:
        ConfigError: a word is not a name, or a name has no value.
    """
    pairs, words = [], list(words)
    at = 0
    while at < len(words):
        word = words[at]
        name, equals, value = word.removeprefix("--").partition("=")
        at += 1
        if not equals:
            if not word.startswith("--"):
                raise ConfigError(
                    f"{word!r}: is not a setting; write --section.name value, for example --train.lr 0.001"
                )
            if at == len(words) or words[at].startswith("--"):
                raise ConfigError(f"{word}: has no value; write {word} VALUE")
            value = words[at]
            at += 1
        name = name.replace("-", "_")
        if name in _RENAMED:
            print(f"longplay: --{name} is now called --{_RENAMED[name]}", file=sys.stderr)
            name = _RENAMED[name]
        pairs.append((_ALIASES.get(name, name), value))
    return pairs


# ---------------------------------------------------------------------- parts


def _set(nested: Nested, name: str, text: str) -> None:
    known = settings(RunConfig)
    if name not in known:
        same_field = [full for full in known if full.rpartition(".")[2] == name.rpartition(".")[2]]
        near = difflib.get_close_matches(name, same_field or known, n=1, cutoff=0.0 if same_field else 0.5)
        hint = f"; did you mean --{near[0]}?" if near else f"; the sections are {', '.join(_sections())}"
        raise ConfigError(f"--{name}: there is no such setting{hint}")
    *sections, last = name.split(".")
    for section in sections:
        nested = nested.setdefault(section, {})
    value = _value(text)
    one_of_several = get_origin(known[name]) is tuple and not isinstance(value, list | None)
    nested[last] = [value] if one_of_several else value


def _value(text: str) -> Any:
    """What a shell word means: none, a comma-separated tuple, or text that the field's type will read."""
    if text.lower() in ("none", "null"):
        return None
    if "," in text:
        return [_value(part.strip()) for part in text.split(",") if part.strip()]
    try:
        return json.loads(text.lower())
    except ValueError:
        return text


def settings(kind: Any, prefix: str = "") -> dict[str, Any]:
    """Dotted name -> type of every setting under a dataclass that a user can type."""
    found: dict[str, Any] = {}
    types = get_type_hints(kind)  # a field's own `type` is text where its module postpones annotations
    for item in dataclasses.fields(kind):
        if dataclasses.is_dataclass(types[item.name]):
            found |= settings(types[item.name], f"{prefix}{item.name}.")
        elif item.name != "recipe":
            found[prefix + item.name] = types[item.name]
    return found


def _sections() -> list[str]:
    return [item.name for item in dataclasses.fields(RunConfig) if dataclasses.is_dataclass(item.type)]


def _validate(nested: Nested) -> RunConfig:
    try:
        return _ADAPTER.validate_python(nested)
    except ValidationError as error:
        raise ConfigError(_one_line(error)) from None


def _one_line(error: ValidationError) -> str:
    """The first complaint, its setting named as a user types it."""
    first = error.errors()[0]
    place = [str(part) for part in first["loc"]]
    while place and place[-1].isdigit():  # which entry of a tuple
        place.pop()
    reason = first["msg"].removeprefix("Value error, ")
    if first["type"] != "value_error":
        return f"{'.'.join(place)}={first['input']!r}: {reason}"
    # A dataclass names its fields alone, or below its own name, or in full.
    starts = [n for n in range(len(place)) if reason.startswith(".".join(place[n:]) + ".")]
    message = ".".join([*place[: starts[0] if starts else len(place)], reason])
    shared = any(message.startswith(f"{part}.{name}") for part, name in _SHARED)
    return message.partition(".")[2] if shared else message


def _flatten(nested: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for name, value in nested.items():
        if isinstance(value, Mapping):
            flat |= _flatten(value, f"{prefix}{name}.")
        else:
            flat[prefix + name] = value
    return flat


_ADAPTER = TypeAdapter(RunConfig)


def read_config(run: Path) -> RunConfig:
    """The configuration that the run folder `run` was begun with.

    Raises:
        ConfigError: it is not a run folder.
    """
    try:
        return from_json(json.loads((run / "config.json").read_text())["config"])
    except FileNotFoundError:
        raise ConfigError(
            f"{run}: is not a run folder (no config.json); give the folder of `longplay train --run`"
        ) from None
    except (OSError, KeyError, json.JSONDecodeError) as error:
        raise ConfigError(f"{run}/config.json: cannot be read ({error}); train into another folder") from None
