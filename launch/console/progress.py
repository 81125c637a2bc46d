"""Show the progress of a command: a bar on a terminal, a plain line about once a minute elsewhere."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterator
from typing import TextIO

from rich.console import Console
from rich.progress import BarColumn, Progress, TaskID, TextColumn

from longplay.common.printable import printable
from longplay.launch.console.durations import duration

_REFRESH_PER_SECOND = 4.0
_LOWEST_SHOWN_RATE = 10.0  # per second
_SHORTEST_INTERVAL_S, _LONGEST_INTERVAL_S = 10.0, 60.0


class ProgressDisplay:
    """Draw one bar on a terminal; write plain lines to any other file.

    The interval between plain lines doubles from 10 s to 60 s. Leaving the context removes the bar.

    Args:
        file: a terminal, a pipe or a file; stdout by default.
        enabled: False makes every method do nothing, for ranks other than 0.
        first_line_s: seconds until the first plain line.
        clock: seconds, monotonic.
    """

    def __init__(
        self,
        file: TextIO | None = None,
        *,
        enabled: bool = True,
        first_line_s: float = 0.0,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._file = sys.stdout if file is None else file
        self._console = Console(file=self._file, force_terminal=self._file.isatty())
        self._enabled, self._clock = enabled, clock
        self._next_line_at, self._interval_s = clock() + first_line_s, _SHORTEST_INTERVAL_S
        self._bar: Progress | None = None
        self._task: tuple[str, TaskID] | None = None

    def __enter__(self) -> ProgressDisplay:
        return self

    def __exit__(self, *_: object) -> None:
        if self._bar is not None:
            self._bar.stop()
        self._bar = self._task = None

    def print(self, line: str) -> None:
        """Print a line, above the bar if there is one; see `printable`."""
        line = printable(line, self._file.encoding)
        if self._bar is not None:
            self._console.print(line, markup=False, highlight=False, soft_wrap=True)
        elif self._enabled:
            print(line, file=self._file, flush=True)

    def update(self, name: str, done: int, total: int, note: str = "", *, unit: str = "") -> None:
        """Show the progress of a stage.

        Args:
            name: name of the stage; a new name starts a new bar.
            note: text shown after the count.
            unit: what is counted.
        """
        if not self._enabled:
            return
        count = f"{done:,} / {total:,} {unit}".rstrip()
        if self._console.is_interactive:
            self._draw(name, done, total, f"{count}  {note}")
        elif self._clock() >= self._next_line_at:
            self.print(f"{name} {count}  {note}".rstrip())
            self._next_line_at = self._clock() + self._interval_s
            self._interval_s = min(2 * self._interval_s, _LONGEST_INTERVAL_S)

    def _draw(self, name: str, done: int, total: int, text: str) -> None:
        if self._bar is None:
            self._bar = Progress(
                TextColumn("{task.description}", markup=False),
                BarColumn(bar_width=None),
                TextColumn("{task.fields[text]}", markup=False),
                console=self._console,
                refresh_per_second=_REFRESH_PER_SECOND,
                transient=True,
                expand=True,
                # Output to a terminal is moved above the bar. Output to a file stays in the file.
                redirect_stdout=sys.stdout.isatty(),
                redirect_stderr=sys.stderr.isatty(),
            )
            self._bar.start()
            self._console.show_cursor(True)  # a killed process must not leave a terminal without a cursor
        if self._task is None or self._task[0] != name:
            if self._task is not None:
                self._bar.remove_task(self._task[1])
            self._task = name, self._bar.add_task(name, total=total, text=text)
        self._bar.update(self._task[1], completed=done, total=total, text=text)


class StageProgress:
    """Show the stages of a command on stderr, each with its rate and the time left.

    Call it with (stage, units done, total units). The first plain line appears after 10 s.

    Args:
        unit: what is counted, for example "events".
        enabled: False shows nothing.
    """

    def __init__(
        self, unit: str, *, enabled: bool = True, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._unit, self._clock = unit, clock
        self._display = ProgressDisplay(
            sys.stderr, enabled=enabled, first_line_s=_SHORTEST_INTERVAL_S, clock=clock
        )
        self._stage, self._began = "", 0.0

    def __enter__(self) -> StageProgress:
        return self

    def __exit__(self, *_: object) -> None:
        self._display.__exit__()

    def __call__(self, stage: str, done: int, total: int) -> None:
        now = self._clock()
        if stage != self._stage:
            self._stage, self._began = stage, now
        note, seconds = "", now - self._began
        if done and seconds > 0:
            rate = done / seconds
            if rate >= _LOWEST_SHOWN_RATE:
                note = f"{rate:,.0f} {self._unit}/s  "
            note += f"{duration(max(0, total - done) / rate)} left"
        self._display.update(stage, done, total, note, unit=self._unit)


def track_shards(numbers: range, stage: str) -> Iterator[int]:
    """Yield each shard number and show how many shards are done."""
    return _track(numbers, stage, "shards")


def track_steps(numbers: range, stage: str) -> Iterator[int]:
    """Yield each step's number and show how many steps are done."""
    return _track(numbers, stage, "steps")


def _track(numbers: range, stage: str, unit: str) -> Iterator[int]:
    with StageProgress(unit) as show:
        for done, number in enumerate(numbers):
            show(stage, done, len(numbers))
            yield number
