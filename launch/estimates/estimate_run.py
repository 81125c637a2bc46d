"""Estimate what a run needs, without a process group and without allocating its tensors."""

import dataclasses

from longplay.data_shards.storage.dataset import Dataset
from longplay.data_shards.stream.epoch_order import EpochOrder
from longplay.distributed.runtime.memory import available_memory
from longplay.distributed.runtime.world import local_world_size, select_device
from longplay.launch.estimates.formulas import estimate_memory
from longplay.launch.estimates.memory_estimate import MemoryEstimate
from longplay.launch.estimates.possible import check_possible
from longplay.launch.estimates.workload import measure_workload
from longplay.launch.settings.config import RunConfig


def estimate_run(
    config: RunConfig,
    dataset: Dataset,
    *,
    world_size: int = 1,
    device_type: str | None = None,
    memory_bytes: int | None = None,
    local_ranks: int | None = None,
    epoch_order: EpochOrder | None = None,
) -> MemoryEstimate:
    """Estimate a run on a dataset, with the memory that it may use as the limit.

    Reads the dataset's lengths and counts, and its shards only for a temporal split.

    Args:
        device_type: "cpu" or "cuda"; None = the device that `train.device` selects on this machine.
        memory_bytes: limit of one rank; None = the GPU's memory, or this machine's available memory divided
            by `local_ranks`.
        local_ranks: ranks on one machine; None = as torchrun or srun reports, or else all ranks.
        epoch_order: order of epoch 0; None = compute it, which is slow for many users.

    Raises:
        ConfigError: the run needs far more than the limit.
        DataError: there are more ranks than lanes, or the split leaves nothing to train on.
    """
    if device_type is None:
        device_type = config.train.device
    if device_type == "auto":
        device_type = select_device("auto")
    limit, limit_source = memory_bytes, "as given"
    if limit is None:
        limit, limit_source = available_memory(device_type, local_ranks or local_world_size(world_size))
    check_possible(
        config, dataset, world_size=world_size, device_type=device_type, limit=(limit, limit_source)
    )
    workload = measure_workload(config, dataset, world_size=world_size, epoch_order=epoch_order)
    estimate = estimate_memory(config, workload, world_size=world_size, device_type=device_type)
    return dataclasses.replace(estimate, limit_bytes=limit, limit_source=limit_source)
