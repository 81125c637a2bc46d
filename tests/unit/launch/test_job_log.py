"""The end of a job's log."""

import os
from pathlib import Path

from longplay.launch.sweeps.job_log import tail


def test_the_tail_of_a_named_pipe_is_empty(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "log")
    assert tail(tmp_path / "log") == tail(tmp_path / "gone") == ""
