"""A run that `train.max_minutes` ends early decays its learning rate until then; other runs are unchanged."""

import io
from collections.abc import Callable
from typing import Literal

import pytest

from longplay.launch.console.progress import ProgressDisplay
from longplay.launch.settings.config import TrainConfig
from longplay.launch.training.pace import Pace, reachable_epochs
from longplay.launch.training.progress import Progress
from longplay.launch.training.schedule import learning_rate
from longplay.launch.training.step_display import StepDisplay

STEPS_PER_EPOCH = 100
Decay = Literal["linear", "cosine"]


def train_run(
    train: TrainConfig,
    seconds: Callable[[int], float],
    at: Progress | None = None,
    until_step: int | None = None,
) -> tuple[list[float], list[str], Progress]:
    """Count the steps of one process without computing them.

    Args:
        seconds: duration of each step, numbered from 1.
        at: progress to resume from.
        until_step: last step of this process.

    Returns:
        The learning rates, the printed lines that are not steps, and the progress at the end.
    """
    at, pace, pipe = at or Progress(), Pace(), io.StringIO()
    shown = StepDisplay(ProgressDisplay(pipe), train)
    rates = []
    while at.why_finished(train) is None and at.step != until_step:
        epochs_done = at.epochs_done(STEPS_PER_EPOCH)
        rates.append(
            learning_rate(
                train, step=at.step + 1, epochs_done=epochs_done, reachable_epochs=at.reachable_epochs
            )
        )
        took = seconds(at.step + 1)
        at.advance(
            epoch=at.epoch, step_in_epoch=at.step_in_epoch, steps_per_epoch=STEPS_PER_EPOCH, seconds=took
        )
        pace.step_done(took)
        at.reachable_epochs = reachable_epochs(train, at, pace, STEPS_PER_EPOCH)
        shown.step_done(at, pace=pace, steps_per_epoch=STEPS_PER_EPOCH, loss=7.0, num_events=50, seconds=took)
    return rates, [line for line in pipe.getvalue().splitlines() if not line.startswith("step ")], at


def one_second(step: int) -> float:
    return 1.0


def slow_first(step: int) -> float:
    return 40.0 if step == 1 else 1.0


def slow_later(step: int) -> float:
    return 1.0 if step < 150 else 1.5


def with_stalls(step: int) -> float:
    return 30.0 if step in {5, 60, 200} else 1.0


@pytest.mark.parametrize("seconds", [one_second, slow_first, slow_later, with_stalls])
@pytest.mark.parametrize("decay", ["linear", "cosine"])
def test_the_decay_is_complete_when_the_time_is_up(seconds: Callable[[int], float], decay: Decay) -> None:
    train = TrainConfig(lr=0.01, max_epochs=20, max_minutes=7, warmup_steps=10, decay=decay)
    rates, lines, at = train_run(train, seconds)
    assert at.epoch < 5  # of 20
    assert rates[10] > 0.0095
    assert rates[-1] == pytest.approx(train.lr * train.final_lr_fraction, rel=0.1)
    assert len(lines) == 1
    assert lines[0].startswith("warning: at this speed, train.max_minutes 7 ends the run after about ")
    assert "of 20 epochs; the learning rate decays over those" in lines[0]


@pytest.mark.parametrize("seconds", [one_second, slow_first, with_stalls])
def test_a_bound_that_is_not_reached_changes_nothing(seconds: Callable[[int], float]) -> None:
    free = TrainConfig(lr=0.01, max_epochs=4)
    bound = TrainConfig(lr=0.01, max_epochs=4, max_minutes=9)
    expected, no_lines, _ = train_run(free, seconds)
    rates, lines, at = train_run(bound, seconds)
    assert (rates, no_lines, at.reachable_epochs) == (expected, [], None)
    assert len(lines) == 1
    assert lines[0].startswith("expected 400 steps in ")
    assert lines[0].endswith(" minutes of training; train.max_minutes is 9")


def test_steps_that_end_the_run_first_keep_the_schedule() -> None:
    train = TrainConfig(lr=0.01, max_epochs=20, max_minutes=5, max_steps=50)
    rates, _, at = train_run(train, one_second)
    assert rates == train_run(TrainConfig(lr=0.01, max_epochs=20, max_steps=50), one_second)[0]
    assert (at.step, at.reachable_epochs) == (50, None)


def test_a_resumed_run_keeps_its_decay_until_its_pace_is_known() -> None:
    train = TrainConfig(lr=0.01, max_epochs=20, max_minutes=5)
    expected, _, _ = train_run(train, one_second)
    before, _, at = train_run(train, one_second, until_step=120)
    after, _, _ = train_run(train, one_second, at)
    assert before + after == pytest.approx(expected, rel=1e-9)
