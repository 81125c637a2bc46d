"""A run's folder: what was asked, with which code, every scalar, and the checkpoints.

config.json        resolved configuration, dataset, git commit, package versions
metrics.jsonl      every scalar; see longplay.launch.run_folders.metrics_file
best.json          the best checkpoint's name, its metric and step
tensorboard/       the same scalars for TensorBoard; a resumed run goes on in its curves
checkpoints/       see longplay.distributed.checkpoints.checkpoint
logs/              what a batch script's jobs printed; it is there before the run begins
"""

import json
import platform
import subprocess
from collections.abc import Mapping
from importlib import metadata
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.utils.tensorboard.writer import SummaryWriter

from longplay.common.atomic import write_json
from longplay.common.locks import FolderLock, FolderLockedError
from longplay.data_shards.storage.dataset import Dataset
from longplay.data_shards.storage.locations import Location, absolute
from longplay.launch.run_folders.metrics_file import METRICS_FILE, Scalar, drop_scalars_after
from longplay.launch.run_folders.tensorboard_log import write_model, write_settings
from longplay.launch.settings.config import RunConfig
from longplay.launch.settings.errors import ConfigError
from longplay.launch.settings.imports import imported
from longplay.launch.settings.resolving import to_json
from longplay.launch.settings.saved import changed_settings, read_config

_PACKAGES = ("torch", "deepspeed", "webdataset", "numpy", "safetensors", "mamba-ssm", "causal-conv1d")


class RunFolder:
    """Paths of a run folder, and the check that it belongs to this dataset and configuration."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.checkpoints = path / "checkpoints"
        self.config_file = path / "config.json"
        self.best_file = path / "best.json"

    def check(self, config: RunConfig, dataset: Dataset) -> bool:
        """Whether a run was begun here; on any rank, before anything is written.

        Raises:
            ConfigError: the folder holds something else, another dataset's run, or one with other settings.
        """
        if not self.config_file.exists():
            if self.path.exists() and not self.path.is_dir():
                raise ConfigError(f"--run {self.path}: is a file; give a folder")
            if self.path.is_dir() and any(item.name != "logs" for item in self.path.iterdir()):
                raise ConfigError(f"--run {self.path}: is not empty and not a run folder; give another one")
            return False
        begun = read_config(self.path)
        saved = json.loads(self.config_file.read_text())
        if saved["dataset_id"] != dataset.dataset_id:
            raise ConfigError(
                f"--run {self.path}: was begun on another dataset ({saved['data']}); "
                "give that --data, or another --run folder"
            )
        changed = changed_settings(begun, config)
        if changed:
            raise ConfigError(
                f"--run {self.path}: was begun with other settings ({'; '.join(changed[:3])}); "
                "repeat those, or give another --run folder"
            )
        return True

    def write_config(self, config: RunConfig, dataset: Dataset, data: Location) -> None:
        """Make the folder where there is none and write config.json for this command; rank 0 only.

        Raises:
            ConfigError: the folder cannot be written.
        """
        try:
            self.checkpoints.mkdir(parents=True, exist_ok=True)
            write_json(
                self.config_file,
                {
                    "config": to_json(config),
                    "imports": imported(),
                    "data": absolute(data),
                    "dataset_id": dataset.dataset_id,
                    "git_commit": git_commit(),
                    "packages": {name: _version(name) for name in _PACKAGES},
                    "python": platform.python_version(),
                    "host": platform.node(),
                    "device": torch.cuda.get_device_name()
                    if torch.cuda.is_available()
                    else platform.machine(),
                },
            )
        except OSError as error:
            raise ConfigError(
                f"--run {self.path}: cannot be written ({error.strerror}); give another folder"
            ) from None

    def lock(self) -> None:
        """Keep other trainings out of this folder until this process ends; rank 0 only, once it is made.

        Raises:
            ConfigError: another process trains here.
        """
        try:
            self._lock = FolderLock(self.path)
        except FolderLockedError:
            raise ConfigError(
                f"--run {self.path}: another process trains in it; wait for it, or give another folder"
            ) from None

    def read_best(self) -> dict[str, Any] | None:
        """The best checkpoint so far: {"checkpoint", "metric", "value", "step"}.

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
                f"{self.best_file}: cannot be read ({error}); name one, for example --checkpoint last"
            ) from None


class MetricsLog:
    """Every scalar, to metrics.jsonl and TensorBoard; a resumed run drops lines past its checkpoint."""

    def __init__(self, path: Path, *, from_step: int) -> None:
        drop_scalars_after(path, from_step)
        self.file = open(path / METRICS_FILE, "a", buffering=1)
        self.board = SummaryWriter(str(path / "tensorboard"), purge_step=from_step + 1 if from_step else None)
        write_settings(self.board, path)

    def write(self, step: int, scalars: Mapping[str, float]) -> None:
        """Append one line per scalar."""
        for tag, value in scalars.items():
            self.file.write(Scalar(step, tag, value).line())
            self.board.add_scalar(tag, value, step)

    def write_model(self, step: int, gate_weights: Mapping[str, float], shard: Tensor) -> None:
        """The gate's mean weights as scalars and a picture, and norms of this rank's table rows."""
        self.write(step, {f"gate/{name}": weight for name, weight in gate_weights.items()})
        write_model(self.board, step, gate_weights, shard)

    def close(self) -> None:
        self.file.close()
        self.board.close()


def git_commit() -> str | None:
    """The commit of the code that runs, with "-dirty" if it has local changes; None outside a checkout."""
    here = Path(__file__).resolve().parent
    described = subprocess.run(
        ["git", "describe", "--always", "--dirty", "--abbrev=40", "--exclude=*"],
        cwd=here,
        capture_output=True,
        text=True,
        check=False,
    )
    return described.stdout.strip() or None


def _version(package: str) -> str | None:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None
