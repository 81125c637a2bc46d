"""Estimate when a run reaches its earliest bound, and whether `train.patience` may end it earlier."""

from dataclasses import dataclass

from longplay.launch.console.durations import duration
from longplay.launch.settings.config import TrainConfig
from longplay.launch.training.progress import Progress


@dataclass(frozen=True, kw_only=True)
class TimeLeft:
    """The rest of a run.

    Attributes:
        steps: optimizer steps until the earliest bound.
        seconds: their wall time, validations and checkpoints included.
        at_most: whether `train.patience` may end the run earlier.
    """

    steps: int
    seconds: float
    at_most: bool

    def __str__(self) -> str:
        return f"{'at most ' if self.at_most else ''}{duration(self.seconds)} left"


def time_left(
    train: TrainConfig, at: Progress, *, steps_per_epoch: int, train_s_per_step: float, wall_s_per_step: float
) -> TimeLeft:
    """Estimate the rest of a run.

    Args:
        train_s_per_step: seconds per step that count toward `train.max_minutes`.
        wall_s_per_step: seconds per step on the clock.
    """
    bounds = [(train.max_epochs - at.epoch) * steps_per_epoch - at.step_in_epoch]
    if train.max_steps is not None:
        bounds.append(train.max_steps - at.step)
    if train.max_minutes is not None:
        bounds.append(round((60 * train.max_minutes - at.train_seconds) / train_s_per_step))
    steps = max(0, min(bounds))
    at_most = train.patience is not None and steps > _steps_until_patience(train, at, steps_per_epoch)
    return TimeLeft(steps=steps, seconds=steps * wall_s_per_step, at_most=at_most)


def _steps_until_patience(train: TrainConfig, at: Progress, steps_per_epoch: int) -> int:
    """Return the steps until patience runs out if no later validation is better."""
    assert train.patience is not None
    if train.eval_every_steps is None:
        interval, since_validation = steps_per_epoch, at.step_in_epoch
    else:
        interval, since_validation = train.eval_every_steps, at.step % train.eval_every_steps
    return (train.patience - at.validations_since_best) * interval - since_validation
