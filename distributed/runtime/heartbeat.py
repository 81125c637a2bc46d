"""The functions with which code reports its progress to the watchdog."""

from collections.abc import Callable

Heartbeat = Callable[[str], None]
"""Called with the work that starts now, whenever there is progress."""

Progress = Callable[[], None]
"""Called when there is progress within the current work, or in another thread."""


def no_heartbeat(doing: str) -> None:
    """Do nothing; the heartbeat of code that runs without a watchdog."""


def no_progress() -> None:
    """Do nothing; the progress of code that runs without a watchdog."""
