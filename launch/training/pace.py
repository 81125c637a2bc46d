"""Measure the duration of steps, and estimate how far a run gets in `train.max_minutes`."""

from __future__ import annotations

import statistics
from collections import deque

import torch

from longplay.distributed.runtime.waiting import waiting
from longplay.distributed.runtime.world import World
from longplay.launch.settings.config import TrainConfig
from longplay.launch.training.progress import Progress

_FEWEST_STEPS, _MEASURED_S = 20, 60.0  # whichever comes first, before the pace is taken as known
_RECENT_STEPS = 101
_NEARLY = 0.98  # of `train.max_epochs`: the rest of the decay changes little


class Pace:
    """The median duration of the recent steps of this process.

    A single slow step, such as the first one, does not change it.
    """

    def __init__(self) -> None:
        self._recent: deque[float] = deque(maxlen=_RECENT_STEPS)
        self._seconds, self._is_first = 0.0, True

    def step_done(self, seconds: float) -> None:
        """Count a step. The first one is left out: it compiles kernels and fills caches."""
        if not self._is_first:
            self._recent.append(seconds)
            self._seconds += seconds
        self._is_first = False

    @property
    def s_per_step(self) -> float | None:
        """Seconds per step; None until enough steps are counted."""
        if len(self._recent) < _FEWEST_STEPS and self._seconds < _MEASURED_S:
            return None
        return max(statistics.median(self._recent), 1e-9)


def reachable_epochs(train: TrainConfig, at: Progress, pace: Pace, steps_per_epoch: int) -> float | None:
    """Estimate the epochs after which `train.max_minutes` ends the run.

    Returns:
        Epochs; None if another bound ends the run first or the decay is nearly complete by then.
    """
    if train.max_minutes is None:
        return None
    if pace.s_per_step is None:
        return at.reachable_epochs
    steps = max(0.0, 60 * train.max_minutes - at.train_seconds) / pace.s_per_step
    if train.max_steps is not None and at.step + steps >= train.max_steps:
        return None
    epochs = at.epochs_done(steps_per_epoch) + steps / steps_per_epoch
    return epochs if epochs < _NEARLY * train.max_epochs else None


def expectation(train: TrainConfig, at: Progress, pace: Pace, steps_per_epoch: int) -> str | None:
    """Describe what a run with `train.max_minutes` reaches at this pace; None if it has no such bound."""
    if train.max_minutes is None or pace.s_per_step is None:
        return None
    if at.reachable_epochs is not None:
        return (
            f"warning: at this speed, train.max_minutes {train.max_minutes:g} ends the run after about "
            f"{at.reachable_epochs:.3g} of {train.max_epochs} epochs; the learning rate decays over those. "
            "Expect lower metrics than after all of them, or raise --train.max_minutes"
        )
    steps = train.max_epochs * steps_per_epoch
    steps = steps if train.max_steps is None else min(steps, train.max_steps)
    seconds = at.train_seconds + (steps - at.step) * pace.s_per_step
    return (
        f"expected {steps:,} steps in {seconds / 60:.3g} minutes of training; train.max_minutes is "
        f"{train.max_minutes:g}"
    )


def agreed_seconds(seconds: float, train: TrainConfig, world: World) -> float:
    """Return rank 0's duration of a step if a bound depends on it, since clocks differ. Collective."""
    if train.max_minutes is None or world.world_size == 1:
        return seconds
    shared = torch.tensor([seconds], dtype=torch.float64, device=world.device)
    with waiting("rank 0's clock"):
        torch.distributed.broadcast(shared, 0)
        return shared.item()
