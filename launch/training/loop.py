"""The training loop: train, validate and save until a bound is reached or a stop is requested."""

import time

from longplay.data_shards.stream.train_stream import TrainStream
from longplay.distributed.runtime.heartbeat import Heartbeat
from longplay.distributed.runtime.memory import explain_out_of_memory
from longplay.distributed.runtime.phases import STEP, phase
from longplay.launch.console.stop_request import StopRequest, StopRequested
from longplay.launch.training.model import Model
from longplay.launch.training.pace import Pace, agreed_seconds, reachable_epochs
from longplay.launch.training.profiling import StepProfile
from longplay.launch.training.progress import Progress
from longplay.launch.training.run_log import RunLog
from longplay.launch.training.saving import RunCheckpoints
from longplay.launch.training.schedule import learning_rate
from longplay.launch.training.step_pipeline import StepPipeline
from longplay.launch.training.train_step import train_step
from longplay.launch.training.validation import Validation


def run_loop(
    model: Model,
    stream: TrainStream,
    progress: Progress,
    *,
    validation: Validation,
    checkpoints: RunCheckpoints,
    log: RunLog,
    profile: StepProfile,
    stop: StopRequest,
    heartbeat: Heartbeat,
) -> bool:
    """Train from `progress` on and return whether any rank received a stop request. Collective.

    A requested stop saves before it validates: the validation is left to the next start of the run.
    """
    train = model.config.train
    stream.load_state_dict({"epoch": progress.epoch, "step": progress.step_in_epoch})
    pipeline = StepPipeline(
        model,
        iter(stream),
        first_step=progress.step + 1,
        epoch=progress.epoch,
        heartbeat=heartbeat,
        interrupts=stop.interrupts,
    )

    pace = Pace()
    progress.reachable_epochs = reachable_epochs(
        train, progress, pace, stream.steps_per_epoch(progress.epoch)
    )
    stopped = finished = False
    if progress.validation_is_pending:
        finished, stopped = finish_step(
            model, progress, validation=validation, checkpoints=checkpoints, log=log, stopped=False
        )
    while not (finished or stopped):
        began = time.perf_counter()
        with phase(STEP):
            planned = pipeline.take()
            steps_per_epoch = stream.steps_per_epoch(planned.batch.epoch)
            epochs_done = progress.epochs_done(steps_per_epoch)
            lr = learning_rate(
                train,
                step=planned.step,
                epochs_done=epochs_done,
                reachable_epochs=progress.reachable_epochs,
            )
            is_last = progress.next_step_is_last(train, steps_per_epoch)
            try:
                with explain_out_of_memory(f"step {planned.step}"):
                    result = train_step(
                        model,
                        planned,
                        lr=lr,
                        stop_requested=stop.requested,
                        pipeline=None if is_last else pipeline,
                    )
            except StopRequested:
                if progress != checkpoints.saved:
                    log.save_done(checkpoints.save(model, progress))
                return True
        seconds = agreed_seconds(time.perf_counter() - began, train, model.world)
        data_wait_s = pipeline.take_data_wait_s()
        log.print(profile.step_done())
        progress.advance(
            epoch=planned.batch.epoch,
            step_in_epoch=planned.batch.step,
            steps_per_epoch=steps_per_epoch,
            seconds=seconds,
        )
        pace.step_done(seconds)
        progress.reachable_epochs = reachable_epochs(train, progress, pace, steps_per_epoch)
        checkpoints.raise_save_error()
        log.step_done(
            planned.batch,
            result,
            pace=pace,
            steps_per_epoch=steps_per_epoch,
            lr=lr,
            seconds=seconds,
            data_wait_s=data_wait_s,
        )
        progress.validation_is_pending = progress.validation_is_due(train)
        finished, stopped = finish_step(
            model,
            progress,
            validation=validation,
            checkpoints=checkpoints,
            log=log,
            stopped=result.stop_requested,
        )
    return stopped


def finish_step(
    model: Model,
    progress: Progress,
    *,
    validation: Validation,
    checkpoints: RunCheckpoints,
    log: RunLog,
    stopped: bool,
) -> tuple[bool, bool]:
    """Validate and save what is due after a step. Collective.

    The last step is validated and saved. A stop leaves the validation pending.

    Args:
        stopped: whether any rank is to stop.

    Returns:
        Whether a bound of the run is reached, and whether any rank is to stop.
    """
    train = model.config.train
    finished, validated = progress.why_finished(train) is not None, False
    progress.validation_is_pending |= finished
    if progress.validation_is_pending and not stopped:
        try:
            log.validation_done(validation.run(progress))
            validated = True
            finished = progress.why_finished(train) is not None  # `train.patience` may be exhausted
        except StopRequested:
            stopped = True
    if progress != checkpoints.saved and (validated or stopped or progress.save_is_due(train)):
        log.save_done(checkpoints.save(model, progress))
    return finished, stopped
