"""A run's folder: its configuration, its scalars and its checkpoints.

config.json        resolved configuration, run id, dataset, git commit, package versions
metrics.jsonl      every scalar; see longplay.launch.run_folders.metrics_file
best.json          the best checkpoint's name, its metric and step
tensorboard/       the same scalars for TensorBoard; a resumed run continues its curves
checkpoints/       see longplay.distributed.checkpoints.checkpoint
logs/              output of the jobs of a batch script, which creates it before the run begins
"""

import json
import secrets
from pathlib import Path
from typing import Any

import torch

from longplay.common.atomic import write_json
from longplay.common.locks import FolderLock, FolderLockedError
from longplay.data_shards.storage.dataset import Dataset
from longplay.data_shards.storage.locations import Location, absolute
from longplay.launch.run_folders.provenance import provenance
from longplay.launch.settings.config import RunConfig
from longplay.launch.settings.errors import ConfigError
from longplay.launch.settings.imports import imported
from longplay.launch.settings.resolving import to_json
from longplay.launch.settings.saved import changed_settings, read_config


class RunFolder:
    """The paths of a run folder, and the check that it belongs to a dataset and a configuration."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.checkpoints = path / "checkpoints"
        self.config_file = path / "config.json"
        self.best_file = path / "best.json"

    def check(self, config: RunConfig, dataset: Dataset) -> bool:
        """Check that a run may use the folder; return whether it holds a run to resume. Writes nothing.

        Raises:
            ConfigError: the folder holds something else, a run on another dataset or one with other settings.
        """
        if not self.config_file.exists():
            if self.path.exists() and not self.path.is_dir():
                raise ConfigError(f"--run {self.path}: is a file; give a folder")
            if self.path.is_dir() and any(item.name != "logs" for item in self.path.iterdir()):
                raise ConfigError(f"--run {self.path}: is neither empty nor a run folder; give another one")
            return False
        original = read_config(self.path)
        saved = json.loads(self.config_file.read_text())
        if saved["dataset_id"] != dataset.dataset_id:
            raise ConfigError(
                f"--run {self.path}: belongs to another dataset ({saved['data']}); "
                "give that --data, or another --run folder"
            )
        changed = changed_settings(original, config)
        if changed:
            raise ConfigError(
                f"--run {self.path}: was started with other settings ({'; '.join(changed[:3])}); "
                "use those settings, or give another --run folder"
            )
        return True

    def write_config(self, config: RunConfig, dataset: Dataset, data: Location, device: torch.device) -> None:
        """Create the folder if it does not exist and write config.json. Call it on rank 0 only.

        Args:
            device: the device of the encoder and the table.

        Raises:
            ConfigError: the folder cannot be written.
        """
        # A run that an earlier version started has no id, and neither have its checkpoints.
        run_id = self.owner()["run_id"] if self.config_file.exists() else secrets.token_hex(8)
        try:
            self.checkpoints.mkdir(parents=True, exist_ok=True)
            write_json(
                self.config_file,
                {
                    "run_id": run_id,
                    "config": to_json(config),
                    "imports": imported(),
                    "data": absolute(data),
                    "dataset_id": dataset.dataset_id,
                    **provenance(device),
                },
            )
        except OSError as error:
            raise ConfigError(
                f"--run {self.path}: cannot be written ({error.strerror}); give another folder"
            ) from None

    def owner(self) -> dict[str, Any]:
        """Return the values that the state.json of each of the run's checkpoints has, from config.json."""
        saved = json.loads(self.config_file.read_text())
        return {"run_id": saved.get("run_id"), "dataset_id": saved["dataset_id"]}

    def lock(self) -> None:
        """Lock the existing folder until this process ends. Call it on rank 0 only.

        Raises:
            ConfigError: another process is training in the folder.
        """
        try:
            self._lock = FolderLock(self.path)
        except FolderLockedError:
            raise ConfigError(
                f"--run {self.path}: another process is training in it; wait for it, or give another folder"
            ) from None

    def read_best(self) -> dict[str, Any] | None:
        """Return the best checkpoint as {"checkpoint", "metric", "value", "step"}; None before a validation.

        Raises:
            ConfigError: best.json is damaged.
        """
        if not self.best_file.exists():
            return None
        try:
            best = json.loads(self.best_file.read_text())
            return {name: best[name] for name in ("checkpoint", "metric", "value", "step")}
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise ConfigError(
                f"{self.best_file}: cannot be read ({error}); give a checkpoint, such as --checkpoint last"
            ) from None
