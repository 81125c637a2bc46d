"""Show each training step: its loss, the events per second and the time left."""

import time
from collections.abc import Callable

from longplay.launch.console.progress import ProgressDisplay
from longplay.launch.settings.config import TrainConfig
from longplay.launch.training.pace import Pace, expectation
from longplay.launch.training.progress import Progress
from longplay.launch.training.time_left import time_left

_DECAY = 0.9  # events per second are a mean over about the last ten steps


class StepDisplay:
    """Show the steps of one process, which may have resumed the run.

    Args:
        clock: seconds, monotonic.
    """

    def __init__(
        self, display: ProgressDisplay, train: TrainConfig, *, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._display, self._train, self._clock = display, train, clock
        self._first: tuple[int, float, float] | None = None
        self._events = self._seconds = 0.0
        self._printed_expectation = False

    def step_done(
        self,
        at: Progress,
        *,
        pace: Pace,
        steps_per_epoch: int,
        loss: float,
        num_events: int,
        seconds: float,
    ) -> None:
        """Show the step that `at` has just counted.

        Args:
            pace: the pace of this process, with the step.
            num_events: targets of all ranks that the step trained on.
            seconds: the step's duration.
        """
        self._events = _DECAY * self._events + num_events
        self._seconds = _DECAY * self._seconds + seconds
        now = self._clock()
        if self._first is None:  # The first step is slow: caches are cold and kernels are compiled.
            self._first = at.step, at.train_seconds, now
        first_step, first_train_s, began = self._first
        steps = at.step - first_step
        left = time_left(
            self._train,
            at,
            steps_per_epoch=steps_per_epoch,
            train_s_per_step=(at.train_seconds - first_train_s) / steps if steps else seconds,
            wall_s_per_step=(now - began) / steps if steps else seconds,
        )
        expected = None if self._printed_expectation else expectation(self._train, at, pace, steps_per_epoch)
        if expected is not None:
            self._printed_expectation = True
            self._display.print(expected)
        note = f"loss {loss:.4f}  {self._events / self._seconds:,.0f} events/s"
        self._display.update("step", at.step, at.step + left.steps, f"{note}  {left}" if steps else note)
