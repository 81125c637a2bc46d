"""Where a run stands, when it ends, and how it is told to stop."""

import os
import signal
from dataclasses import dataclass
from typing import Any

from longplay.launch.settings.config import TrainConfig


@dataclass(kw_only=True)
class Progress:
    """Where a run stands; all of it is in every checkpoint."""

    step: int = 0
    epoch: int = 0
    step_in_epoch: int = 0
    train_seconds: float = 0.0
    best_value: float | None = None
    best_step: int | None = None
    validations_since_best: int = 0

    def advance(self, *, epoch: int, step_in_epoch: int, steps_per_epoch: int, seconds: float) -> None:
        """Count the step that was step number `step_in_epoch` (from 0) of `epoch`."""
        self.step += 1
        self.train_seconds += seconds
        ended = step_in_epoch + 1 == steps_per_epoch
        self.epoch, self.step_in_epoch = (epoch + 1, 0) if ended else (epoch, step_in_epoch + 1)

    def epochs_done(self, steps_per_epoch: int) -> float:
        """Epochs that lie behind, the current one in part."""
        return self.epoch + self.step_in_epoch / steps_per_epoch

    def note_validation(self, value: float) -> None:
        """Remember the best value of the metric and how long ago it was."""
        self.validations_since_best += 1
        if self.best_value is None or value > self.best_value:
            self.best_value, self.best_step, self.validations_since_best = value, self.step, 0

    def why_finished(self, train: TrainConfig) -> str | None:
        """The bound that is reached, or None while there is something left to do."""
        if self.epoch >= train.max_epochs:
            return f"train.max_epochs {train.max_epochs} done"
        if train.max_steps is not None and self.step >= train.max_steps:
            return f"train.max_steps {train.max_steps} done"
        if train.max_minutes is not None and self.train_seconds >= 60 * train.max_minutes:
            return f"train.max_minutes {train.max_minutes:g} are up"
        if train.patience is not None and self.validations_since_best >= train.patience:
            return f"no better {train.metric} in {train.patience} validations"
        return None


class StopRequest:
    """Turns the first SIGTERM, SIGUSR1 or SIGINT into a request to save and stop; a second acts at once.

    Slurm sends SIGTERM twice when it ends a step, through slurmd and through srun, and SIGKILL after its
    grace time anyway: in a step of it further SIGTERM and SIGUSR1 are let pass.
    """

    def __init__(self) -> None:
        self.signal: signal.Signals | None = None
        for number in (signal.SIGTERM, signal.SIGUSR1, signal.SIGINT):
            signal.signal(number, self._ask)

    @property
    def asked(self) -> bool:
        return self.signal is not None

    def _ask(self, number: int, frame: Any) -> None:
        self.signal = signal.Signals(number)
        later = signal.SIG_IGN if "SLURM_STEP_ID" in os.environ else signal.SIG_DFL
        for each in (signal.SIGTERM, signal.SIGUSR1):
            signal.signal(each, later)
        signal.signal(signal.SIGINT, signal.SIG_DFL)
