"""The training loop: train, validate and save until a bound is reached or a stop is requested."""

import time
from dataclasses import dataclass

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


@dataclass(frozen=True, kw_only=True)
class TrainingLoop:
    """The loop of one process, and what a step uses.

    Attributes:
        progress: where training begins; updated with every step and validation.
        heartbeat: the watchdog's.
    """

    model: Model
    stream: TrainStream
    progress: Progress
    validation: Validation
    checkpoints: RunCheckpoints
    log: RunLog
    profile: StepProfile
    stop: StopRequest
    heartbeat: Heartbeat

    def run(self) -> bool:
        """Train from `progress` on and return whether any rank received a stop request. Collective.

        A requested stop saves before it validates: the validation is left to the next start of the run.
        """
        stream, progress, pace = self.stream, self.progress, Pace()
        stream.load_state_dict({"epoch": progress.epoch, "step": progress.step_in_epoch})
        pipeline = StepPipeline(
            self.model,
            iter(stream),
            first_step=progress.step + 1,
            epoch=progress.epoch,
            heartbeat=self.heartbeat,
            interrupts=self.stop.interrupts,
        )
        self._note_reachable(pace, stream.steps_per_epoch(progress.epoch))
        stopped = finished = False
        if progress.validation_is_pending:
            finished, stopped = self._finish_step(stopped=False)
        while not (finished or stopped):
            try:
                stopped = self._train_step(pipeline, pace)
            except StopRequested:
                self._save()
                return True
            progress.validation_is_pending = progress.validation_is_due(self.model.config.train)
            finished, stopped = self._finish_step(stopped=stopped)
        return stopped

    def _train_step(self, pipeline: StepPipeline, pace: Pace) -> bool:
        """Train and record one step; return whether any rank received a stop request. Collective.

        Raises:
            StopRequested: the step was not trained, because some rank is to stop. Raised on every rank.
        """
        model, progress, train = self.model, self.progress, self.model.config.train
        began = time.perf_counter()
        with phase(STEP):
            planned = pipeline.take()
            steps_per_epoch = self.stream.steps_per_epoch(planned.batch.epoch)
            lr = learning_rate(
                train,
                step=planned.step,
                epochs_done=progress.epochs_done(steps_per_epoch),
                reachable_epochs=progress.reachable_epochs,
            )
            is_last = progress.next_step_is_last(train, steps_per_epoch)
            with explain_out_of_memory(f"step {planned.step}"):
                result = train_step(
                    model,
                    planned,
                    lr=lr,
                    stop_requested=self.stop.requested,
                    pipeline=None if is_last else pipeline,
                )
        seconds = agreed_seconds(time.perf_counter() - began, train, model.world)
        data_wait_s = pipeline.take_data_wait_s()
        self.log.print(self.profile.step_done())
        progress.advance(
            epoch=planned.batch.epoch,
            step_in_epoch=planned.batch.step,
            steps_per_epoch=steps_per_epoch,
            seconds=seconds,
        )
        pace.step_done(seconds)
        self._note_reachable(pace, steps_per_epoch)
        self.checkpoints.raise_save_error()
        self.log.step_done(
            planned.batch,
            result,
            pace=pace,
            steps_per_epoch=steps_per_epoch,
            lr=lr,
            seconds=seconds,
            data_wait_s=data_wait_s,
        )
        return result.stop_requested

    def _finish_step(self, *, stopped: bool) -> tuple[bool, bool]:
        """Validate and save what is due after a step. Collective.

        The last step is validated and saved. A stop leaves the validation pending.

        Args:
            stopped: whether any rank is to stop.

        Returns:
            Whether a bound of the run is reached, and whether any rank is to stop.
        """
        progress, train = self.progress, self.model.config.train
        finished, validated = progress.why_finished(train) is not None, False
        progress.validation_is_pending |= finished
        if progress.validation_is_pending and not stopped:
            try:
                self.log.validation_done(self.validation.run(progress))
                validated = True
                finished = progress.why_finished(train) is not None  # `train.patience` may be exhausted
            except StopRequested:
                stopped = True
        if validated or stopped or progress.save_is_due(train):
            self._save()
        return finished, stopped

    def _save(self) -> None:
        """Save unless this progress is saved already. Collective."""
        if self.progress != self.checkpoints.saved:
            self.log.save_done(self.checkpoints.save(self.model, self.progress))

    def _note_reachable(self, pace: Pace, steps_per_epoch: int) -> None:
        train, progress = self.model.config.train, self.progress
        progress.reachable_epochs = reachable_epochs(train, progress, pace, steps_per_epoch)
