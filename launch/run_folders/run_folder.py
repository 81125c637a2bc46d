"""A run's folder: its configuration, its scalars and its checkpoints.

config.json        resolved configuration, run id, dataset, git commit, package versions
metrics.jsonl      every scalar; see longplay.launch.run_folders.metrics_file
best.json          the best checkpoint's name, its metric and step
tensorboard/       the same scalars for TensorBoard; a resumed run continues its curves
checkpoints/       see longplay.distributed.checkpoints.checkpoint
logs/              output of the jobs of a batch script, which creates it before the run begins
"""

import os
import secrets
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import torch
from pydantic import Field

from longplay.common.atomic import write_json
from longplay.common.json_files import Finite, JsonFileError, Natural, read_json
from longplay.common.locks import FolderLock, FolderLockedError, is_lock_file, lock_file
from longplay.data_shards.storage.dataset import Dataset
from longplay.data_shards.storage.locations import Location, absolute
from longplay.distributed.runtime.collectives import broadcast_object
from longplay.distributed.runtime.world import World
from longplay.launch.inputs.event_inputs import as_json, check_recorded, load_inputs
from longplay.launch.run_folders.provenance import provenance
from longplay.launch.settings.config import RunConfig
from longplay.launch.settings.errors import ConfigError
from longplay.launch.settings.imports import imported
from longplay.launch.settings.resolving import to_json
from longplay.launch.settings.saved import changed_settings, read_config, read_saved_run


@dataclass(frozen=True, kw_only=True)
class Best:
    """The content of best.json: the best checkpoint's name, and its value of the metric `train.metric`."""

    checkpoint: Annotated[str, Field(pattern=r"^step-[0-9]{1,18}$")]
    metric: str
    value: Finite
    step: Natural


class RunFolder:
    """The paths of a run folder, and the check that it belongs to a dataset and a configuration."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.checkpoints = path / "checkpoints"
        self.config_file = path / "config.json"
        self.best_file = path / "best.json"
        self._lock: FolderLock | None = None
        self._owner: dict[str, Any] | None = None

    def check(self, config: RunConfig, dataset: Dataset) -> bool:
        """Check that a run may use the folder; return whether it holds a run to resume. Writes nothing.

        Raises:
            ConfigError: the folder holds something else, or a run on another dataset, with other settings or
                with other inputs.
        """
        if not self.config_file.exists():
            if self.path.exists() and not self.path.is_dir():
                raise ConfigError(f"--run {self.path}: is a file; give a folder")
            if self.path.is_dir() and not all(map(_is_left_over, self.path.iterdir())):
                raise ConfigError(f"--run {self.path}: is neither empty nor a run folder; give another one")
            return False
        self._check_kinds()
        original = read_config(self.path)
        saved = read_saved_run(self.path)
        if saved.dataset_id != dataset.dataset_id:
            raise ConfigError(
                f"--run {self.path}: belongs to another dataset ({saved.data}); "
                "give that --data, or another --run folder"
            )
        changed = changed_settings(original, config)
        if changed:
            raise ConfigError(
                f"--run {self.path}: was started with other settings ({'; '.join(changed[:3])}); "
                "use those settings, or give another --run folder"
            )
        if saved.inputs is not None:
            check_recorded(saved.inputs, load_inputs(config.inputs, dataset), dataset)
        return True

    def _check_kinds(self) -> None:
        """Check that nothing in the folder stands where training would later write a file or a folder.

        Raises:
            ConfigError: something does.
        """
        for path in (self.checkpoints, self.path / "tensorboard"):
            if os.path.lexists(path) and not path.is_dir():
                raise ConfigError(f"{path}: is not a folder, or links to none; move it away")
        if os.path.lexists(self.best_file) and not self.best_file.is_file():
            raise ConfigError(f"{self.best_file}: is not a file; move it away")

    @contextmanager
    def claimed(self, config: RunConfig, dataset: Dataset, world: World) -> Iterator[None]:
        """Create and lock the folder and check it again, under the lock. Collective.

        After the context, the folder stays locked until the process ends or `release`. An exception in the
        context unlocks the folder and removes what this created.

        Raises:
            ConfigError: as `check`, another process is training in the folder, or it cannot be written.
        """
        created: list[Path] = []
        try:
            if world.is_rank0:
                self._lock_folder(created)
                exists = self.check(config, dataset)
                new_id = {"run_id": secrets.token_hex(8), "dataset_id": dataset.dataset_id}
                self._owner = self.owner() if exists else new_id
            self._owner = broadcast_object(self._owner, world)
            yield
        except BaseException:
            for path in created:
                with suppress(OSError):
                    path.rmdir() if path.is_dir() else path.unlink()
            self.release()
            raise

    def write_config(self, config: RunConfig, dataset: Dataset, data: Location, device: torch.device) -> None:
        """Write config.json into the claimed folder. Call it on rank 0 only.

        Args:
            device: the device of the encoder and the table.

        Raises:
            ConfigError: the folder cannot be written.
        """
        spec = load_inputs(config.inputs, dataset).spec
        try:
            write_json(
                self.config_file,
                {
                    **self.owner(),
                    "config": to_json(config),
                    **({"inputs": as_json(spec)} if spec else {}),
                    "imports": imported(),
                    "data": absolute(data),
                    **provenance(device),
                },
            )
        except OSError as error:
            raise self._cannot_write(error) from None

    def owner(self) -> dict[str, Any]:
        """Return the values that the state.json of each of the run's checkpoints has.

        A run that an earlier version started has the id None, and its checkpoints have none.
        """
        if self._owner is not None:
            return self._owner
        saved = read_saved_run(self.path)
        return {"run_id": saved.run_id, "dataset_id": saved.dataset_id}

    def release(self) -> None:
        """Unlock the folder. Idempotent."""
        if self._lock is not None:
            self._lock.release()
            self._lock = None

    def _lock_folder(self, created: list[Path]) -> None:
        """Create the folder and lock it; insert what is new into `created`, the innermost path first."""
        try:
            for path in (*reversed(self.path.parents), self.path):
                _make_folder(path, created)
            new_lock = not lock_file(self.path).exists()
            self._lock = FolderLock(self.path)
            if new_lock:
                created.insert(0, lock_file(self.path))
            _make_folder(self.checkpoints, created)
        except FolderLockedError:
            raise ConfigError(
                f"--run {self.path}: another process is training in it; wait for it, or give another folder"
            ) from None
        except OSError as error:
            raise self._cannot_write(error) from None

    def _cannot_write(self, error: OSError) -> ConfigError:
        return ConfigError(f"--run {self.path}: cannot be written ({error.strerror}); give another folder")

    def read_best(self) -> "Best | None":
        """Return the best checkpoint; None before a validation.

        Raises:
            ConfigError: best.json is damaged.
        """
        try:
            return read_json(self.best_file, Best)
        except FileNotFoundError:
            return None
        except JsonFileError as error:
            raise ConfigError(f"{error}; give a checkpoint, such as --checkpoint last") from None


def _make_folder(path: Path, created: list[Path]) -> None:
    """Create one folder and insert it into `created`, unless it exists."""
    if not path.is_dir():
        with suppress(FileExistsError):
            path.mkdir()
            created.insert(0, path)


def _is_left_over(path: Path) -> bool:
    """Return whether a path in a folder without config.json may be left by a killed start or by a job."""
    if path.name == "checkpoints":
        return path.is_dir() and not any(path.iterdir())
    return path.name == "logs" or is_lock_file(path)
