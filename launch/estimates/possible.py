"""Refuse settings that need far more memory than exists, before anything is measured or built."""

from collections.abc import Iterator
from contextlib import suppress

import numpy as np

from longplay.common.sizes import gib
from longplay.data_shards.storage.dataset import Dataset
from longplay.distributed.runtime.memory import available_memory
from longplay.launch.estimates.formulas import estimate_memory
from longplay.launch.estimates.workload import Workload
from longplay.launch.settings.config import RunConfig
from longplay.launch.settings.errors import ConfigError
from longplay.launch.settings.overrides import flatten, spell_value
from longplay.launch.settings.resolving import to_json, with_setting
from longplay.models.encoder_size import EncoderTooLargeError
from longplay.models.inputs.spec import InputSpec

# Below these, `check_fits` is quick enough to name settings with which the run fits.
_FAR_BEYOND, _MANY_BYTES = 8.0, 256 << 30
_LARGEST_GPU_BYTES = 1 << 40
# Settings that increase the memory of a step, with usual values.
_USUAL = {
    **{"context_length": 200, "encoder.num_blocks": 2, "encoder.d_model": 64, "encoder.d_state": 32},
    **{"encoder.d_conv": 4, "encoder.expand": 2, "encoder.headdim": 32, "encoder.d_ff": None},
    **{"data.num_lanes": 12, "data.rows_per_step": 120, "data.prefetch_steps": 2, "loss.num_negatives": 128},
    **{"engine.gradient_accumulation_steps": 1, "engine.reduce_bucket_elements": 1 << 20},
}


def check_possible(
    config: RunConfig,
    dataset: Dataset,
    *,
    world_size: int,
    device_type: str,
    limit: tuple[int | None, str] | None = None,
) -> None:
    """Check that a lower bound of the memory of a run is not far above the limit. Takes milliseconds.

    Args:
        device_type: "cpu" or "cuda".
        limit: bytes of one rank, and a description of them; None = the available memory of a CPU, or 1 TiB
            for a GPU, which is not touched.

    Raises:
        ConfigError: it is; the message names the setting to lower.
    """
    if limit is None:
        a_gpu = _LARGEST_GPU_BYTES, "more than any GPU has"
        limit = a_gpu if device_type == "cuda" else available_memory("cpu", 1)
    most, source = limit
    if most is None:
        return
    least = _least_bytes(config, dataset, world_size, device_type)
    if least <= max(_FAR_BEYOND * most, _MANY_BYTES):
        return
    lowered = {
        name: _least_bytes(changed, dataset, world_size, device_type) for name, changed in _changes(config)
    }
    name = min(lowered, key=lambda name: lowered[name])
    value = flatten(to_json(config))[name]
    raise ConfigError(
        f"--{name} {value}: needs at least {gib(least)} per rank, more than {gib(most)} ({source}); lower "
        f"--{name}, or another setting of the model"
    )


def _least_bytes(config: RunConfig, dataset: Dataset, world_size: int, device_type: str) -> float:
    """Return a lower bound of a rank's memory: rows without targets, and a single item that is looked up."""
    workload = Workload(
        num_lanes=config.data.num_lanes,
        num_users=dataset.num_users,
        num_items=dataset.num_items,
        num_events=dataset.num_events,
        steps_per_epoch=0,
        targets_per_epoch=0,
        num_segments=0,
        filled=0.0,
        padding=1.0,
        probabilities=np.ones(1),
        inputs=InputSpec(),
        column_bytes=0,
    )
    try:
        return estimate_memory(config, workload, world_size=world_size, device_type=device_type).total_bytes
    except EncoderTooLargeError:
        return 2.0**63


def _changes(config: RunConfig) -> Iterator[tuple[str, RunConfig]]:
    """Yield each setting that can be lowered to its usual value, and the settings with it lowered."""
    values = flatten(to_json(config))
    for name, usual in _USUAL.items():
        if values[name] is not None and (usual is None or values[name] > usual):
            with suppress(ConfigError):
                yield name, with_setting(config, name, spell_value(usual))
