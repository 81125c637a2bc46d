"""Which settings would make a planned run fit, if it does not."""

import dataclasses
import math
from collections.abc import Iterator

from longplay.common.sizes import gib
from longplay.data_shards.storage.dataset import Dataset
from longplay.launch.estimates.memory_estimate import MemoryEstimate, estimate
from longplay.launch.estimates.workload import Workload, measure_workload
from longplay.launch.settings.config import RunConfig
from longplay.launch.settings.errors import ConfigError
from longplay.models.encoder import num_parameters
from longplay.models.losses.base import LOSSES

_Change = tuple[str, RunConfig, int]
"""What is changed in words, the configuration, and the world size."""


def check_plan(plan: MemoryEstimate, config: RunConfig, dataset: Dataset, *, certainty: float = 1.0) -> None:
    """See that a planned run fits.

    Args:
        certainty: 1 refuses what is planned above the limit; 1.25 only what surely does not fit.
    Raises:
        ConfigError: it does not; names two settings, with values, either of which makes it fit.
    """
    if plan.fits(certainty):
        return
    assert plan.limit_bytes is not None
    workload = measure_workload(config, dataset, world_size=plan.world_size)
    ways = ways_to_fit(plan, config, workload)
    needs = (
        f"{plan.recipe}: needs about {gib(plan.total_bytes)} per rank, more than {gib(plan.limit_bytes)} "
        f"({plan.limit_is})"
    )
    if not ways:
        raise ConfigError(f"{needs}; no two settings make it fit: take a smaller model or more memory")
    raise ConfigError(f"{needs}; it fits with {', or with '.join(ways)}")


def ways_to_fit(plan: MemoryEstimate, config: RunConfig, workload: Workload) -> list[str]:
    """At most two settings, each of which makes the run fit; or one pair of settings that does together."""

    def fits(changed: RunConfig, world_size: int) -> MemoryEstimate | None:
        tried = estimate(changed, workload, world_size=world_size, device_type=plan.device_type)
        tried = dataclasses.replace(tried, limit_bytes=plan.limit_bytes)
        return tried if tried.fits() else None

    ways: list[str] = []
    for values in _single_changes(config, workload, plan):
        for text, changed, world_size in values:
            found = fits(changed, world_size)
            if found is not None:
                ways.append(f"{text} ({gib(found.total_bytes)})")
                break
        if len(ways) == 2:
            return ways
    if ways:
        return ways
    kinds = list(_single_changes(config, workload, plan))
    for first in kinds:
        for text, changed, world_size in first:
            again = dataclasses.replace(plan, world_size=world_size)
            for second in _single_changes(changed, workload, again):
                for other, both, size in second:
                    found = fits(both, size)
                    if found is not None and other.split()[0] != text.split()[0]:
                        return [f"{text} and {other} together ({gib(found.total_bytes)})"]
    return []


def _single_changes(config: RunConfig, workload: Workload, plan: MemoryEstimate) -> Iterator[list[_Change]]:
    """For each setting that saves memory, its values from the mildest to the strongest."""
    lanes, world_size = workload.num_lanes, plan.world_size
    rows = config.data.rows_per_step
    rows_of_rank = -(-lanes // world_size) * (rows // lanes)
    engine, table, encoder = config.engine, config.table, config.encoder

    def change(text: str, size: int = world_size, **parts: object) -> _Change:
        return text, dataclasses.replace(config, **parts), size  # type: ignore[arg-type]  # checked by RunConfig

    yield [
        change(
            f"--engine.gradient_accumulation_steps {n}",
            engine=dataclasses.replace(engine, gradient_accumulation_steps=n),
        )
        for n in _doublings(engine.gradient_accumulation_steps, rows_of_rank)
    ]
    yield [change(f"--world-size {n}", size=n) for n in _doublings(world_size, lanes)]
    if table.update == "zero_dense":
        yield [change("--table.update row_sparse", table=dataclasses.replace(table, update="row_sparse"))]
    elif table.optimizer.name == "adam":
        adagrad = dataclasses.replace(table.optimizer, name="adagrad")
        yield [change("--table.optimizer.name adagrad", table=dataclasses.replace(table, optimizer=adagrad))]
    if plan.device_type == "cuda":
        if (
            table.update == "row_sparse"
            and not LOSSES[config.loss.name].dense_gradient
            and table.placement == "device"
        ):
            yield [change("--table.placement host", table=dataclasses.replace(table, placement="host"))]
        fewer = max(1 << 20, num_parameters(encoder))
        if fewer < engine.reduce_bucket_elements:
            smaller = dataclasses.replace(engine, reduce_bucket_elements=fewer)
            yield [change(f"--engine.reduce_bucket_elements {fewer}", engine=smaller)]
    if engine.precision == "fp32" and plan.device_type == "cuda":
        yield [change("--engine.precision bf16", engine=dataclasses.replace(engine, precision="bf16"))]
    yield [
        change(f"--data.rows_per_step {n}", data=dataclasses.replace(config.data, rows_per_step=n))
        for n in (lanes * k for k in _halvings(rows // lanes))
    ]
    yield [
        change(
            f"--context_length {n}",
            context_length=n,
            encoder=dataclasses.replace(encoder, context_length=n),
            data=dataclasses.replace(config.data, context_length=n),
        )
        for n in _halvings(config.context_length)
    ]
    yield [
        change(f"--encoder.d_model {n}", encoder=dataclasses.replace(encoder, d_model=n))
        for n in _halvings(encoder.d_model)
        if n % math.lcm(encoder.num_heads, 8) == 0 and encoder.expand * n % encoder.headdim == 0
    ]


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
