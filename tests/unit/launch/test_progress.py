"""Progress is a bar on a terminal and plain lines elsewhere, with the time until the earliest bound."""

import io
import re
from dataclasses import dataclass

import pytest
from hypothesis import given
from hypothesis import strategies as st

from longplay.launch.console.durations import duration
from longplay.launch.console.exit_codes import report
from longplay.launch.console.progress import ProgressDisplay, StageProgress, track_shards
from longplay.launch.console.tables import new_table, print_table
from longplay.launch.settings.config import TrainConfig
from longplay.launch.training.pace import Pace
from longplay.launch.training.progress import Progress
from longplay.launch.training.step_display import StepDisplay
from longplay.launch.training.time_left import TimeLeft, time_left


class FakeTerminal(io.StringIO):
    """A file whose `isatty` returns True."""

    def isatty(self) -> bool:
        return True


@dataclass
class Clock:
    """A clock that a test sets."""

    now: float = 0.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def terminal(monkeypatch: pytest.MonkeyPatch) -> FakeTerminal:
    monkeypatch.setenv("TERM", "xterm")
    return FakeTerminal()


def test_escape_codes_in_lines_and_tables_are_not_sent_to_the_terminal(
    terminal: FakeTerminal, capsys: pytest.CaptureFixture[str]
) -> None:
    with ProgressDisplay(terminal) as display:
        display.print("\x1b[31mred")
        display.update("step", 1, 2, "loss")
        display.print("\x1b[32mgreen")
    table = new_table("name")
    table.add_row("\x1b]0;title\x07")
    print_table(table)
    report("\x1b[33myellow\nsecond", 2)
    assert r"\x1b[31mred" in terminal.getvalue()
    assert r"\x1b[32mgreen" in terminal.getvalue()
    printed = capsys.readouterr()
    assert printed.out.splitlines()[-1].strip() == r"\x1b]0;title\x07"
    assert printed.err == "longplay: error: \\x1b[33myellow second\n"


def test_a_terminal_shows_a_bar_and_lines_above_it(terminal: FakeTerminal) -> None:
    with ProgressDisplay(terminal) as display:
        display.update("step", 1, 4, "loss 1.5")
        display.print("a line with [brackets]")
        display.update("step", 4, 4, "loss 0.5")
    display.print("done")
    shown = re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", terminal.getvalue())
    assert "━" in shown
    assert "1 / 4  loss 1.5" in shown
    assert "4 / 4  loss 0.5" in shown
    assert "a line with [brackets]\n" in shown
    assert shown.endswith("done\n")


def test_the_cursor_stays_visible(terminal: FakeTerminal) -> None:
    display = ProgressDisplay(terminal)
    display.update("step", 1, 4)
    hidden, visible = terminal.getvalue().rfind("\x1b[?25l"), terminal.getvalue().rfind("\x1b[?25h")
    assert visible > hidden
    display.__exit__()


def test_a_pipe_gets_a_line_at_once_and_then_at_most_one_a_minute() -> None:
    pipe, clock = io.StringIO(), Clock()
    with ProgressDisplay(pipe, clock=clock) as display:
        for second in range(601):
            clock.now = second
            display.update("step", second, 600)
    steps = [int(line.split()[1]) for line in pipe.getvalue().splitlines()]
    assert steps == [0, 10, 30, 70, 130, 190, 250, 310, 370, 430, 490, 550]
    assert "\x1b" not in pipe.getvalue()


def test_a_disabled_display_writes_nothing(terminal: FakeTerminal) -> None:
    with ProgressDisplay(terminal, enabled=False) as display:
        display.update("step", 1, 4)
        display.print("a line")
    assert terminal.getvalue() == ""


def test_stages_have_a_rate_and_the_time_left(capsys: pytest.CaptureFixture[str]) -> None:
    clock = Clock()
    with StageProgress("events", clock=clock) as show:
        for second in (0, 20):
            clock.now = second
            show("reading", 100 * second, 8000)
    assert capsys.readouterr().err == "reading 2,000 / 8,000 events  100 events/s  1 min left\n"


def test_short_stages_leave_a_log_empty(capsys: pytest.CaptureFixture[str]) -> None:
    assert list(track_shards(range(24), "verifying shards")) == list(range(24))
    assert capsys.readouterr() == ("", "")


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        *((0.2, "0 s"), (59, "59 s"), (61, "1 min"), (3540, "59 min"), (3600, "1 h 0 min")),
        *((18_300, "5 h 5 min"), (100 * 3600, "4 d 4 h")),
    ],
)
def test_durations_are_rounded(seconds: float, text: str) -> None:
    assert duration(seconds) == text


def left(train: TrainConfig, at: Progress) -> TimeLeft:
    return time_left(train, at, steps_per_epoch=100, train_s_per_step=1.0, wall_s_per_step=2.0)


@given(st.integers(1, 30), st.none() | st.integers(1, 3000), st.none() | st.floats(0.1, 60))
def test_the_time_left_is_the_time_until_the_earliest_bound(
    max_epochs: int, max_steps: int | None, max_minutes: float | None
) -> None:
    train = TrainConfig(max_epochs=max_epochs, max_steps=max_steps, max_minutes=max_minutes)
    at = Progress()
    expected = left(train, at)
    steps = 0
    while at.why_finished(train) is None:
        at.advance(epoch=at.epoch, step_in_epoch=at.step_in_epoch, steps_per_epoch=100, seconds=1.0)
        steps += 1
    assert abs(expected.steps - steps) <= (max_minutes is not None)  # minutes are rounded to steps
    assert expected.seconds == 2 * expected.steps
    assert not expected.at_most
    assert left(train, at).steps == 0


@pytest.mark.parametrize(("eval_every_steps", "first_end"), [(None, 300), (40, 120)])
def test_patience_makes_the_time_left_an_upper_bound(eval_every_steps: int | None, first_end: int) -> None:
    for max_steps in (first_end, first_end + 1):
        train = TrainConfig(patience=3, max_steps=max_steps, eval_every_steps=eval_every_steps)
        assert left(train, Progress()).at_most == (max_steps > first_end)
    train = TrainConfig(patience=3, max_steps=1000, eval_every_steps=eval_every_steps)
    assert str(left(train, Progress())) == "at most 33 min left"


def test_a_step_shows_loss_speed_and_time_left() -> None:
    pipe, clock = io.StringIO(), Clock()
    train = TrainConfig(max_epochs=2, max_minutes=60)
    at = Progress()
    steps = StepDisplay(ProgressDisplay(pipe, clock=clock), train, clock=clock)
    for step in range(12):
        clock.now = step + 1.0
        at.advance(epoch=0, step_in_epoch=step, steps_per_epoch=100, seconds=0.5)
        steps.step_done(at, pace=Pace(), steps_per_epoch=100, loss=7 - step / 4, num_events=50, seconds=0.5)
    assert pipe.getvalue().splitlines() == [
        "step 1 / 200  loss 7.0000  100 events/s",
        "step 11 / 200  loss 4.5000  100 events/s  3 min left",
    ]
