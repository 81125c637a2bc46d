"""Daemon threads run calls in order and never keep a process alive."""

from __future__ import annotations

import subprocess
import sys
import threading

from longplay.common.daemon_threads import DaemonThreads


def test_results_and_exceptions_reach_the_caller() -> None:
    with DaemonThreads(2, "test") as threads:
        assert list(threads.map(divmod, [7, 9], [2, 4])) == [(3, 1), (2, 1)]
        assert isinstance(threads.submit(int, "x").exception(), ValueError)


def test_a_cancelled_call_does_not_run() -> None:
    ran, gate = threading.Event(), threading.Event()
    with DaemonThreads(1, "test") as threads:
        first, second = threads.submit(gate.wait), threads.submit(ran.set)
        assert second.cancel()
        gate.set()
        assert first.result()
    assert not ran.is_set()


def test_a_call_that_never_returns_does_not_delay_the_exit() -> None:
    script = """
import threading
from longplay.common.daemon_threads import DaemonThreads
with DaemonThreads(1, "test") as threads:
    threads.submit(threading.Event().wait)
print("done")
"""
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=60)
    assert (done.stdout, done.returncode) == ("done\n", 0)
