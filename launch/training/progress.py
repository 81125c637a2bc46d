"""The progress of a run: what is done, what is due, and when the run ends."""

from dataclasses import dataclass

from longplay.common.json_files import Finite, JsonObject, Natural, check_json
from longplay.distributed.checkpoints.checkpoint import Checkpoint, CheckpointState
from longplay.launch.settings.config import TrainConfig


@dataclass(kw_only=True)
class Progress:
    """The progress of a run. Every checkpoint stores all fields.

    Attributes:
        step: optimizer steps done.
        epoch, step_in_epoch: position of the next step in the data, both from 0.
        train_seconds: time of the steps, without validation and saving.
        reachable_epochs: epochs after which `train.max_minutes` is expected to end the run; None if another
            bound does.
        best_value, best_step: best validation of `train.metric` and its step; None before a validation.
        validations_since_best: validations in a row that did not improve the metric.
        validation_is_pending: whether the run stopped before the validation of the last step.
    """

    step: Natural = 0
    epoch: Natural = 0
    step_in_epoch: Natural = 0
    train_seconds: Finite = 0.0
    reachable_epochs: Finite | None = None
    best_value: Finite | None = None
    best_step: Natural | None = None
    validations_since_best: Natural = 0
    validation_is_pending: bool = False

    def advance(self, *, epoch: int, step_in_epoch: int, steps_per_epoch: int, seconds: float) -> None:
        """Count one step.

        Args:
            step_in_epoch: number of the step in its epoch, from 0.
            seconds: duration of the step.
        """
        self.step += 1
        self.train_seconds += seconds
        ended = step_in_epoch + 1 == steps_per_epoch
        self.epoch, self.step_in_epoch = (epoch + 1, 0) if ended else (epoch, step_in_epoch + 1)

    def note_validation(self, value: float) -> None:
        """Count a validation and keep the best value of the metric."""
        self.validations_since_best += 1
        self.validation_is_pending = False
        if self.best_value is None or value > self.best_value:
            self.best_value, self.best_step, self.validations_since_best = value, self.step, 0

    def restart_best(self) -> None:
        """Forget the best validation, because later ones cannot be compared with it."""
        self.best_value, self.best_step, self.validations_since_best = None, None, 0

    def epochs_done(self, steps_per_epoch: int) -> float:
        """Return the number of epochs trained, with the fraction of the current one."""
        return self.epoch + self.step_in_epoch / steps_per_epoch

    def next_step_is_last(self, train: TrainConfig, steps_per_epoch: int) -> bool:
        """Return whether the next step reaches the bound of steps or epochs."""
        ends_epoch = self.step_in_epoch + 1 == steps_per_epoch
        return (ends_epoch and self.epoch + 1 == train.max_epochs) or self.step + 1 == train.max_steps

    def validation_is_due(self, train: TrainConfig) -> bool:
        """Return whether to validate after the step just counted."""
        if train.eval_every_steps is None:
            return self.step_in_epoch == 0
        return self.step % train.eval_every_steps == 0

    def save_is_due(self, train: TrainConfig) -> bool:
        """Return whether to save after the step just counted, apart from the save after each validation."""
        return train.checkpoint_every_steps is not None and self.step % train.checkpoint_every_steps == 0

    def why_complete(self, train: TrainConfig) -> str | None:
        """Return the bound that is reached, as text; None while a step or a validation is left."""
        return None if self.validation_is_pending else self.why_finished(train)

    def why_finished(self, train: TrainConfig) -> str | None:
        """Return the bound that is reached, as text; None while a step is left."""
        if self.epoch >= train.max_epochs:
            return f"train.max_epochs {train.max_epochs} reached"
        if train.max_steps is not None and self.step >= train.max_steps:
            return f"train.max_steps {train.max_steps} reached"
        if train.max_minutes is not None and self.train_seconds >= 60 * train.max_minutes:
            return f"train.max_minutes {train.max_minutes:g} reached"
        if train.patience is not None and self.validations_since_best >= train.patience:
            return f"no better {train.metric} in {train.patience} validations"
        return None


def read_progress(checkpoint: Checkpoint) -> Progress:
    """Return the progress that a checkpoint of a run stores, without the fields that this version lacks."""
    return check_json(checkpoint.state["progress"], Progress, checkpoint.path / "state.json")


class RunState(CheckpointState):
    """The state.json of a run's checkpoint: progress and settings, and the fields of every checkpoint."""

    progress: Progress
    config: JsonObject
