"""A request to save and stop, made by a signal."""

import os
import signal
from typing import Any


class StopRequest:
    """Turn the first SIGTERM, SIGUSR1 or SIGINT into a request to save and stop; a second one kills.

    At the end of a job step Slurm sends SIGTERM twice, through slurmd and through srun, and SIGKILL after a
    grace period. Inside a job step a second SIGTERM or SIGUSR1 is therefore ignored.
    """

    def __init__(self) -> None:
        self.signal: signal.Signals | None = None
        for number in (signal.SIGTERM, signal.SIGUSR1, signal.SIGINT):
            signal.signal(number, self._receive)

    @property
    def requested(self) -> bool:
        return self.signal is not None

    def _receive(self, number: int, frame: Any) -> None:
        self.signal = signal.Signals(number)
        later = signal.SIG_IGN if "SLURM_STEP_ID" in os.environ else signal.SIG_DFL
        for each in (signal.SIGTERM, signal.SIGUSR1):
            signal.signal(each, later)
        signal.signal(signal.SIGINT, signal.SIG_DFL)
