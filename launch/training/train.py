"""Train one run in this process, from its settings to its exit code."""

import os
from pathlib import Path

import torch

from longplay.data_shards.storage.dataset import Dataset
from longplay.data_shards.storage.locations import Location
from longplay.data_shards.stream.train_stream import check_stream
from longplay.distributed.runtime.watchdog import Watchdog
from longplay.distributed.runtime.world import close_world, init_world, read_environment
from longplay.launch.run_folders.run_folder import RunFolder
from longplay.launch.settings.config import RunConfig
from longplay.launch.settings.data_arguments import agree_on_bad_shards
from longplay.launch.training.loop import Training
from longplay.launch.training.progress import StopRequest


def train(config: RunConfig, data: Location, run: Path, *, profile_steps: int = 0) -> int:
    """Train or resume the run in folder `run` and return the exit code. Collective.

    Args:
        data: the prepared dataset.
        profile_steps: number of steps to profile, see `StepProfile`.

    Raises:
        ValueError: the dataset, the run folder and the settings do not fit together.
    """
    dataset = Dataset.open(data, on_bad_shard=config.data.on_bad_shard)
    folder = RunFolder(run)
    begun = folder.check(config, dataset)
    check_stream(dataset, config.data, world_size=read_environment(os.environ)[2])
    stop = StopRequest()
    # The watchdog finds out who hangs while the others wait in a collective, which so must wait for longer.
    world = init_world(device=config.train.device, timeout_s=2 * config.train.timeout_s)
    with Watchdog(world, timeout_s=config.train.timeout_s) as watchdog:
        agree_on_bad_shards(dataset, config, world)
        if world.is_rank0:
            folder.write_config(config, dataset, data)
            folder.lock()
        if not begun and world.world_size > 1:
            torch.distributed.barrier()  # the folder must exist before another rank looks for checkpoints
        code = Training(
            config,
            dataset,
            folder,
            world,
            stop=stop,
            watchdog=watchdog,
            profile_steps=profile_steps,
        ).run()
    close_world()
    return code
