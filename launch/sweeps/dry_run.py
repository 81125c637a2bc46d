"""`longplay sweep --dry-run`: list the runs of a grid with their steps and memory; submit none."""

from typing import Any

from longplay.common.sizes import gib
from longplay.data_shards.storage.dataset import Dataset
from longplay.data_shards.storage.locations import parse_location
from longplay.launch.console.tables import new_table, print_table
from longplay.launch.estimates.formulas import estimate_memory
from longplay.launch.estimates.workload import Workload, measure_workload
from longplay.launch.sweeps.cluster import Resources
from longplay.launch.sweeps.folder import SweepFolder
from longplay.launch.sweeps.grid import SweepJobSpec
from longplay.launch.sweeps.status import sweep_status


def dry_run(folder: SweepFolder, specs: list[SweepJobSpec], resources: Resources) -> int:
    """Print a line per run with its state, steps and memory per rank; write nothing."""
    device = "cuda" if resources.gpus_per_node else "cpu"
    datasets: dict[str, Dataset] = {}
    workloads: dict[Any, Workload] = {}  # measuring is slow and does not depend on the model
    states = {status.spec.name: status.state for status in sweep_status(folder)}
    table = new_table("run", "state", "steps/epoch", "max steps", "memory/rank")
    for spec in specs:
        config = spec.config
        if spec.data not in datasets:
            location = parse_location(spec.data)
            datasets[spec.data] = Dataset.open(location, on_bad_shard=config.data.on_bad_shard)
        key = (spec.data, config.data)
        if key not in workloads:
            workloads[key] = measure_workload(config, datasets[spec.data], world_size=resources.world_size)
        estimate = estimate_memory(
            config, workloads[key], world_size=resources.world_size, device_type=device
        )
        steps = estimate.steps_per_epoch * config.train.max_epochs
        if config.train.max_steps is not None:
            steps = min(steps, config.train.max_steps)
        numbers = f"{estimate.steps_per_epoch:,}", f"{steps:,}", gib(estimate.total_bytes)
        table.add_row(spec.name, states[spec.name], *numbers)
    print_table(table)
    ranks = "rank" if resources.world_size == 1 else "ranks"
    print(
        f"{len(specs)} runs of {resources.world_size} {ranks} on {device}; nothing was submitted or written"
    )
    return 0
