"""Where a run's code came from and what it ran on, for config.json."""

import platform
import subprocess
from importlib import metadata
from pathlib import Path

import torch

_PACKAGES = ("torch", "deepspeed", "webdataset", "numpy", "safetensors", "mamba-ssm", "causal-conv1d")


def provenance(device: torch.device) -> dict[str, object]:
    """Return the git commit, package versions, Python version, host and name of `device` as JSON values."""
    return {
        "git_commit": git_commit(),
        "packages": {name: _version(name) for name in _PACKAGES},
        "python": platform.python_version(),
        "host": platform.node(),
        "device": torch.cuda.get_device_name(device) if device.type == "cuda" else platform.machine(),
    }


def git_commit() -> str | None:
    """Return the commit of this code, with "-dirty" if it has local changes; None outside a checkout."""
    described = subprocess.run(
        ["git", "describe", "--always", "--dirty", "--abbrev=40", "--exclude=*"],
        cwd=Path(__file__).resolve().parent,
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
