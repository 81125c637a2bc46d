"""Train one run in this process, from its settings to its exit code."""

import os
from pathlib import Path

from longplay.data_shards.storage.dataset import Dataset
from longplay.data_shards.storage.locations import Location
from longplay.data_shards.stream.train_stream import TrainStream, check_stream
from longplay.distributed.runtime.determinism import use_deterministic_algorithms
from longplay.distributed.runtime.launchers import read_environment
from longplay.distributed.runtime.watchdog import Watchdog
from longplay.distributed.runtime.world import (
    World,
    barrier,
    close_world,
    init_world,
    select_device,
)
from longplay.launch.console.exit_codes import EXIT_REQUEUE
from longplay.launch.console.progress import ProgressDisplay
from longplay.launch.console.stop_request import StopRequest
from longplay.launch.estimates.estimate_run import estimate_run
from longplay.launch.estimates.fitting import check_fits, misfit
from longplay.launch.estimates.possible import check_possible
from longplay.launch.inputs.event_inputs import load_inputs
from longplay.launch.run_folders.run_folder import RunFolder
from longplay.launch.settings.bad_shards import agree_on_bad_shards, check_agreement, share_skipped
from longplay.launch.settings.config import RunConfig
from longplay.launch.training.loop import TrainingLoop
from longplay.launch.training.model import build_model
from longplay.launch.training.profiling import StepProfile
from longplay.launch.training.progress import Progress
from longplay.launch.training.run_log import RunLog
from longplay.launch.training.saving import RunCheckpoints
from longplay.launch.training.summary import describe
from longplay.launch.training.validation import Validation

_TOLERANCE = 1.25  # estimates have been off by up to 14 %


def train(config: RunConfig, data: Location, run: Path, *, profile_steps: int = 0) -> int:
    """Train or resume the run in folder `run` and return the exit code. Collective.

    Args:
        data: the prepared dataset.
        profile_steps: number of steps to profile, see `StepProfile`.

    Raises:
        ValueError: the dataset, the run folder and the settings are incompatible.
    """
    dataset = Dataset.open(data, on_bad_shard=config.data.on_bad_shard)
    folder = RunFolder(run)
    # The checks come before the ranks meet, so that a refusal is quick.
    folder.check(config, dataset)
    world_size, device_type = read_environment(os.environ)[2], select_device(config.train.device)
    check_possible(config, dataset, world_size=world_size, device_type=device_type)
    load_inputs(config.inputs, dataset)
    check_stream(dataset, config.data, world_size=world_size)
    # Ranks wait in a collective while the watchdog finds the one that hangs, so a collective may take longer.
    timeout_s = config.train.timeout_s
    with StopRequest() as stop:
        world = init_world(device=config.train.device, timeout_s=2 * timeout_s)
        if config.train.deterministic:
            use_deterministic_algorithms(world.device)
        with Watchdog(world, timeout_s=timeout_s) as watchdog:
            agree_on_bad_shards(dataset, config, world)
            code = _train(config, dataset, data, folder, world, stop, watchdog, profile_steps)
            watchdog.heartbeat("ending the run")
            barrier(world)
        close_world(world)
    return code


def _train(
    config: RunConfig,
    dataset: Dataset,
    data: Location,
    folder: RunFolder,
    world: World,
    stop: StopRequest,
    watchdog: Watchdog,
    profile_steps: int,
) -> int:
    """Build the model or load the newest checkpoint, run the loop and return the exit code. Collective."""
    display = ProgressDisplay(enabled=world.is_rank0)
    skipped_by_all = set(dataset.store.skipped)
    stream = TrainStream(
        dataset,
        config.data,
        rank=world.rank,
        world_size=world.world_size,
        columns=load_inputs(config.inputs, dataset).columns,
        pin_memory=world.device.type == "cuda",
    )
    if world.is_rank0:  # if it fails, the watchdog ends the other ranks
        _check_memory(config, dataset, stream, world, display)

    with folder.claimed(config, dataset, world):
        checkpoints = RunCheckpoints(folder, config, world, watchdog=watchdog, display=display)
        newest = checkpoints.newest
        model = build_model(config, dataset, world, initial_rows=newest is None)
        check_agreement(dataset, skipped_by_all, config, world)
        progress = Progress() if newest is None else checkpoints.load(newest, model)
        validation = Validation(model, dataset, watchdog.heartbeat, stop.interrupts)
        finished = progress.why_complete(config.train)
        if finished is None:
            for line in describe(config, dataset, model, stream.order(progress.epoch), folder.path):
                display.print(line)
            validation.try_one_batch()
        if world.is_rank0:
            folder.write_config(config, dataset, data, world.device)
    log = RunLog(folder, model, dataset, display, progress)
    if finished is not None:
        display.print(f"nothing left to do: {finished}")
        model.engine.close()
        return 0

    profile = StepProfile(folder.path / "profile", world, profile_steps)
    with display:
        stopped = TrainingLoop(
            model=model,
            stream=stream,
            progress=progress,
            validation=validation,
            checkpoints=checkpoints,
            log=log,
            profile=profile,
            stop=stop,
            heartbeat=watchdog.heartbeat,
        ).run()
        watchdog.heartbeat("finishing the last checkpoint")
        checkpoints.wait()
    log.print(profile.close())
    share_skipped(dataset, world)
    log.close()
    model.engine.close()
    return EXIT_REQUEUE if stopped and progress.why_complete(config.train) is None else 0


def _check_memory(
    config: RunConfig, dataset: Dataset, stream: TrainStream, world: World, display: ProgressDisplay
) -> None:
    """Print how much memory the run takes, with a warning if it may be too much.

    Raises:
        ConfigError: the estimate is far above the limit; the message names settings that make the run fit.
    """
    estimate = estimate_run(
        config,
        dataset,
        world_size=world.world_size,
        device_type=world.device.type,
        epoch_order=stream.order(0),
    )
    display.print(estimate.line())
    check_fits(estimate, config, dataset, tolerance=_TOLERANCE)
    if not estimate.fits():
        display.print(f"warning: {misfit(estimate, config, dataset)}")
