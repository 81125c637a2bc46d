"""Find settings that make a run fit into memory."""

import dataclasses
import math
from collections.abc import Iterator

from longplay.common.sizes import gib
from longplay.data_shards.storage.dataset import Dataset
from longplay.launch.estimates.formulas import estimate_memory
from longplay.launch.estimates.memory_estimate import MemoryEstimate
from longplay.launch.estimates.workload import Workload, measure_workload
from longplay.launch.settings.config import RunConfig
from longplay.launch.settings.errors import ConfigError
from longplay.launch.settings.resolving import with_setting
from longplay.models.encoder_size import num_parameters
from longplay.models.losses.base import LOSSES


@dataclasses.dataclass(frozen=True)
class _Change:
    """A changed configuration and world size, and the option that makes the change."""

    option: str
    config: RunConfig
    world_size: int


def check_fits(
    estimate: MemoryEstimate, config: RunConfig, dataset: Dataset, *, tolerance: float = 1.0
) -> None:
    """Check that an estimated run fits into its limit.

    Args:
        tolerance: with 1, refuse every estimate above the limit; with 1.25, only estimates that are more than
            25 % above it.

    Raises:
        ConfigError: the run does not fit; the message names two settings, each of which makes it fit.
    """
    if not estimate.fits(tolerance):
        raise ConfigError(misfit(estimate, config, dataset))


def misfit(estimate: MemoryEstimate, config: RunConfig, dataset: Dataset) -> str:
    """Describe a run that does not fit into its limit, with up to two settings that each make it fit."""
    assert estimate.limit_bytes is not None
    workload = measure_workload(config, dataset, world_size=estimate.world_size)
    ways = ways_to_fit(estimate, config, workload)
    needs = (
        f"{estimate.recipe}: needs about {gib(estimate.total_bytes)} per rank, more than "
        f"{gib(estimate.limit_bytes)} ({estimate.limit_source})"
    )
    if not ways:
        return f"{needs}; no two settings make it fit: use a smaller model or more memory"
    return f"{needs}; it fits with {', or with '.join(ways)}"


def ways_to_fit(estimate: MemoryEstimate, config: RunConfig, workload: Workload) -> list[str]:
    """Return up to two settings that each make the run fit or, if none does, one pair that does."""

    def fitting(change: _Change) -> MemoryEstimate | None:
        changed = estimate_memory(
            change.config, workload, world_size=change.world_size, device_type=estimate.device_type
        )
        changed = dataclasses.replace(changed, limit_bytes=estimate.limit_bytes)
        return changed if changed.fits() else None

    device_type = estimate.device_type
    ways: list[str] = []
    for values in _changes(config, workload, estimate.world_size, device_type):
        for change in values:
            found = fitting(change)
            if found is not None:
                ways.append(f"{change.option} ({gib(found.total_bytes)})")
                break
        if len(ways) == 2:
            return ways
    if ways:
        return ways
    for values in _changes(config, workload, estimate.world_size, device_type):
        for first in values:
            for others in _changes(first.config, workload, first.world_size, device_type):
                for second in others:
                    found = fitting(second)
                    if found is not None and second.option.split()[0] != first.option.split()[0]:
                        return [f"{first.option} and {second.option} together ({gib(found.total_bytes)})"]
    return []


def _changes(
    config: RunConfig, workload: Workload, world_size: int, device_type: str
) -> Iterator[list[_Change]]:
    """Yield, for each setting that saves memory, its values from the mildest to the strongest."""
    lanes, on_gpu = workload.num_lanes, device_type == "cuda"
    data, encoder, engine, table = config.data, config.encoder, config.engine, config.table

    def setting(name: str, *values: int | str) -> list[_Change]:
        return [
            _Change(f"--{name} {value}", with_setting(config, name, str(value)), world_size)
            for value in values
        ]

    rows_of_rank = -(-lanes // world_size) * (data.rows_per_step // lanes)
    accumulation = _doublings(engine.gradient_accumulation_steps, rows_of_rank)
    yield setting("engine.gradient_accumulation_steps", *accumulation)
    yield [_Change(f"--world-size {n}", config, n) for n in _doublings(world_size, lanes)]
    if table.update == "zero_dense":
        yield setting("table.update", "row_sparse")
    elif table.optimizer.name == "adam":
        yield setting("table.optimizer.name", "adagrad")
    touched_rows_only = table.update == "row_sparse" and not LOSSES[config.loss.name].dense_gradient
    if on_gpu and touched_rows_only and table.placement == "device":
        yield setting("table.placement", "host")
    fewer = max(1 << 20, num_parameters(encoder, workload.inputs))
    if on_gpu and fewer < engine.reduce_bucket_elements:
        yield setting("engine.reduce_bucket_elements", fewer)
    if on_gpu and engine.precision == "fp32":
        yield setting("engine.precision", "bf16")
    yield setting("data.rows_per_step", *(lanes * k for k in _halvings(data.rows_per_step // lanes)))
    yield setting("context_length", *_halvings(config.context_length))
    widths = [n for n in _halvings(encoder.d_model) if n % math.lcm(encoder.num_heads, 8) == 0]
    yield setting("encoder.d_model", *(n for n in widths if encoder.expand * n % encoder.headdim == 0))


def _doublings(value: int, most: int) -> list[int]:
    found = []
    while value < most:
        value = min(2 * value, most)
        found.append(value)
    return found


def _halvings(value: int) -> list[int]:
    found = []
    while value > 1:
        value //= 2
        found.append(value)
    return found
