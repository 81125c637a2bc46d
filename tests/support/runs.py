"""Small datasets and runs."""

from pathlib import Path
from typing import Any

from longplay.data_shards.preparation.options import PrepareOptions
from longplay.data_shards.preparation.pipeline import prepare_dataset
from longplay.data_shards.readers.synthetic import SyntheticSource
from longplay.launch.run_folders.metrics_file import Series, read_scalars
from longplay.launch.settings.config import RunConfig
from longplay.launch.settings.resolving import resolve


def small_dataset(folder: Path) -> Path:
    """Prepare a synthetic dataset of 200 users, 300 items and 6,000 events in 24 shards; return its path."""
    path = folder / "data"
    prepare_dataset(SyntheticSource(users=200, items=300, events=6000, seed=5), path, PrepareOptions())
    return path


def small_settings(model: str = "mambarec") -> dict[str, Any]:
    """Return the settings of a one-second run with dropout and gradient clipping."""
    return {
        "seed": 7,
        "context_length": 40,
        "encoder": {
            "model": model,
            "d_model": 16,
            "num_blocks": 1,
            "dropout": 0.3,
            "d_state": 8,
            "headdim": 8,
        },
        "engine": {"max_grad_norm": 0.2},
        "data": {"rows_per_step": 24},
        "train": {"lr": 0.01, "warmup_steps": 5, "max_epochs": 4, "log_every_steps": 1, "device": "cpu"},
        "evaluation": {"rows_per_batch": 8},
    }


def small_config(*overrides: str, model: str = "mambarec") -> RunConfig:
    return resolve("small", small_settings(model), overrides)


def read_metrics(run: Path, tag: str) -> Series:
    """Return the values of one tag by step; empty if it was never logged."""
    return read_scalars(run).get(tag, {})


def steps_logged(run: Path) -> int:
    """Return the number of logged steps; 0 without a log."""
    return len(read_metrics(run, "train/loss"))
