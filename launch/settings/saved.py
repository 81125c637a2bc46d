"""The configuration in a run folder, and which of its settings a later command may change."""

import copy
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from longplay.common.json_files import JsonFileError, JsonObject, read_json
from longplay.common.kinds import not_a
from longplay.launch.settings.compatibility import rename_in_place
from longplay.launch.settings.config import RunConfig
from longplay.launch.settings.errors import ConfigError
from longplay.launch.settings.imports import check_imports
from longplay.launch.settings.overrides import flatten
from longplay.launch.settings.resolving import to_json, validate

# Settings that change how a run is computed but not its result.
SAME_RESULT = frozenset(
    {
        *("data.reader_threads", "data.prefetch_steps", "data.on_bad_shard"),
        *("engine.reduce_bucket_elements", "engine.cuda_graph", "evaluation.rows_per_batch"),
        *("train.timeout_s", "train.background_save", "train.device", "train.log_every_steps"),
        *("train.keep_checkpoints", "train.checkpoint_every_steps"),
    }
)

# Settings that bound the length of a run, and do not change its steps.
_BOUNDS = frozenset({"train.max_steps", "train.max_minutes", "train.patience"})

# Settings on which the best validation so far depends.
_BEST_DEPENDS_ON = ("train.metric", "evaluation.max_validation_users")

# Settings of where weights are kept, which change at most the rounding of a result.
_SAME_UP_TO_ROUNDING = frozenset({"engine.zero_stage", "table.placement", "table.cached_rows"})

# Settings, or whole sections, that may change when a run is resumed, including those that bound its length.
MAY_CHANGE = SAME_RESULT | _SAME_UP_TO_ROUNDING | {"train", "evaluation"}


@dataclass(frozen=True, kw_only=True)
class SavedRun:
    """What commands read from the config.json of a run folder.

    Attributes:
        config: the settings, for `from_json`.
        data: the folder or URL of the dataset.
        dataset_id: the dataset's fingerprint.
        run_id: random; None in a run of an earlier version.
        imports: modules of the user that the run needs.
        inputs: the encoder's inputs besides the items; None = none.
    """

    config: JsonObject
    data: str
    dataset_id: str
    run_id: str | None = None
    imports: tuple[str, ...] = ()
    inputs: JsonObject | None = None


def changed_settings(
    old: RunConfig, new: RunConfig, *, may_change: Collection[str] = MAY_CHANGE
) -> list[str]:
    """Return the settings that differ but must not, as "name: old -> new" lines.

    Args:
        old: the configuration with which the run was started.
        new: the configuration of a later command.
        may_change: names of settings and sections that are allowed to differ.
    """
    before, after = flatten(to_json(old)), flatten(to_json(new))
    return [
        f"{name}: {before.get(name)} -> {after.get(name)}"
        for name in after | before
        if before.get(name) != after.get(name)
        and name != "recipe"
        and not {name, name.partition(".")[0]}.intersection(may_change)
    ]


def changed_on_resume(old: Mapping[str, Any], new: RunConfig) -> tuple[list[str], bool]:
    """Return the settings that a resumed run changes from here on, in the form of `changed_settings`.

    Args:
        old: the configuration in the checkpoint, as JSON.
        new: the configuration of the command.
    Returns:
        The lines, and whether the best validation so far cannot be compared with later ones.
    """
    before, after = flatten(old), flatten(to_json(new))
    restart = any(before.get(name) != after.get(name) for name in _BEST_DEPENDS_ON)
    return changed_since(old, new, may_change=SAME_RESULT | _BOUNDS | _SAME_UP_TO_ROUNDING), restart


def changed_since(
    old: Mapping[str, Any], new: RunConfig, *, may_change: Collection[str] = MAY_CHANGE
) -> list[str]:
    """Return what `changed_settings` returns, for the configuration in a checkpoint, as JSON.

    A configuration that another version wrote and this one cannot read counts as unchanged.
    """
    try:
        return changed_settings(from_json(old), new, may_change=may_change)
    except ConfigError:
        return []


def from_json(saved: Mapping[str, Any]) -> RunConfig:
    """Rebuild the configuration of a run folder.

    Raises:
        ConfigError: the folder was written by a version with other settings.
    """
    nested = copy.deepcopy(dict(saved))
    rename_in_place(nested)
    return validate(nested)


def read_config(run: Path) -> RunConfig:
    """Return the configuration with which the run in folder `run` was started.

    Raises:
        ConfigError: it is not a run folder, its config.json is damaged, or a module needs --import.
    """
    saved = read_saved_run(run)
    check_imports(saved.imports, run)
    try:
        return from_json(saved.config)
    except ConfigError as error:
        raise ConfigError(
            f"{run / 'config.json'}: {error}; another version of Longplay may have written it"
        ) from None


def read_saved_run(run: Path) -> SavedRun:
    """Read the config.json of the run in folder `run`, without checking its settings.

    Raises:
        ConfigError: it is not a run folder, or its config.json is damaged.
    """
    other = not_a("run", run)
    if other is not None:
        raise ConfigError(f"{other}; give the folder of `longplay train --run`")
    try:
        return read_json(run / "config.json", SavedRun)
    except FileNotFoundError:
        raise ConfigError(
            f"{run}: is not a run folder (no config.json); give the folder of `longplay train --run`"
        ) from None
    except JsonFileError as error:
        raise ConfigError(f"{error}; restore the file, or give another run folder") from None
