"""A sweep's jobs on this machine: in separate processes, or in this process."""

import os
import signal
import socket
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import submitit

from longplay.launch.sweeps.cluster import Resources, Submission, interrupts_blocked, outer_job_hidden
from longplay.launch.sweeps.job import SweepJob

_YEAR_MIN = 525_600


class LocalQueue:
    """Run jobs on this machine, at most `resources.max_parallel` at once.

    A context manager: leaving it sends SIGTERM to the running jobs, which save, and waits until they end.

    Args:
        folder: where submitit keeps its files and the logs.
        started: called when a job has started, with its submission.
        ended: called when a job has ended.
    """

    def __init__(
        self,
        folder: Path,
        resources: Resources,
        *,
        started: Callable[[SweepJob, Submission], None],
        ended: Callable[[SweepJob], None],
    ) -> None:
        self.folder, self.resources = folder, resources
        self.started, self.ended = started, ended
        self.running: list[tuple[SweepJob, Submission, submitit.Job[Any]]] = []

    def __enter__(self) -> "LocalQueue":
        return self

    def __exit__(self, *exc_info: object) -> None:
        """Stop the running jobs, which save, and wait until they have ended."""
        for _, submission, _ in self.running:
            stop_local_job(submission, self.folder)
        while self.running:
            self._collect()

    def run(self, jobs: Sequence[SweepJob]) -> None:
        """Run all jobs; return when the last has ended."""
        waiting = list(jobs)
        while waiting or self.running:
            while waiting and len(self.running) < (self.resources.max_parallel or 1):
                job = waiting.pop(0)
                submission, handle = self._submit(job)
                self.running.append((job, submission, handle))
                self.started(job, submission)
            self._collect()

    def _submit(self, job: SweepJob) -> tuple[Submission, submitit.Job[Any]]:
        executor = submitit.LocalExecutor(folder=self.folder)
        executor.update_parameters(
            tasks_per_node=self.resources.tasks_per_node,
            gpus_per_node=self.resources.gpus_per_node,
            timeout_min=_YEAR_MIN,
            stderr_to_stdout=True,
            setup=list(self.resources.setup),
        )
        # Ctrl-C must reach only this process, which then stops its jobs.
        with outer_job_hidden(), interrupts_blocked():
            handle = executor.submit(job)
        host = socket.gethostname()
        return Submission(cluster="local", job_id=handle.job_id, host=host, time=time.time()), handle

    def _collect(self) -> None:
        time.sleep(0.1)
        for entry in list(self.running):
            job, _, handle = entry
            if handle.done():
                self.running.remove(entry)
                self.ended(job)


def run_in_this_process(job: SweepJob, folder: Path) -> int:
    """Run one job in this process, through submitit's debug executor, and return its exit code."""
    handle = submitit.DebugExecutor(folder=folder).submit(job)
    try:
        error = handle.exception()
    except SystemExit as left:
        return left.code if isinstance(left.code, int) else 1
    if error is not None:
        raise error
    return 0


def local_job_is_alive(submission: Submission, folder: Path) -> bool:
    """Return whether a local job of the sweep with this submitit folder runs on this machine."""
    if submission.host != socket.gethostname():
        return False
    try:
        words = Path(f"/proc/{submission.job_id}/cmdline").read_bytes().split(b"\0")
    except OSError:
        return False
    return b"submitit.local._local" in words and os.fsencode(folder) in words


def stop_local_job(submission: Submission, folder: Path) -> None:
    """Send SIGTERM to a local job, which saves and ends; do nothing if it has ended."""
    if local_job_is_alive(submission, folder):
        try:
            os.kill(int(submission.job_id), signal.SIGTERM)  # the process forwards the signal to its ranks
        except ProcessLookupError:
            return
