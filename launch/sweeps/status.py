"""The status of a sweep's runs, from their folders and, for unfinished ones, from their cluster."""

import re
from collections import Counter
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from longplay.common.printable import printable
from longplay.launch.console.durations import duration
from longplay.launch.console.tables import new_table, print_table
from longplay.launch.run_folders.metrics_file import METRICS_FILE, parse_scalars
from longplay.launch.run_folders.run_folder import RunFolder
from longplay.launch.settings.errors import ConfigError
from longplay.launch.sweeps.cluster import LOST, QueueState, Submission
from longplay.launch.sweeps.folder import SweepFolder
from longplay.launch.sweeps.grid import SweepJobSpec
from longplay.launch.sweeps.job import is_finished
from longplay.launch.sweeps.job_log import STARTS, STOPPED, last_error, since_start, tail
from longplay.launch.sweeps.queue_states import queue_states

# Slurm's pending reasons that resolve by themselves; other reasons may need different options.
_USUAL_REASONS = (
    "",
    "Priority",
    "Resources",
    "JobArrayTaskLimit",
    "Dependency",
    "BeginTime",
    "Prolog",
    "Cleaning",
    "NonZeroExitCode",
)
_ENDINGS = {
    "CANCELLED": "canceled",
    "TIMEOUT": "out of time",
    "OUT_OF_MEMORY": "out of memory",
    "NODE_FAIL": "lost its node",
}


@dataclass(frozen=True, kw_only=True)
class JobStatus:
    """Status of one job of a sweep.

    Attributes:
        state: "new" (never submitted), "pending", "running", "finished", "stopped" (saved; resumes when
            submitted again), "failed", "lost" (its cluster no longer has the job), or another way in which it
            ended.
        live: whether it is still queued or running; a live job is not submitted again.
        at: how far training is.
        node: where it runs or ran last.
        error: its last error, or an unusual reason why it is pending, in one line.
    """

    spec: SweepJobSpec
    state: str
    live: bool
    at: "Progress"
    node: str
    error: str | None


def sweep_status(folder: SweepFolder) -> list[JobStatus]:
    """Return the status of every job, in the order of sweep.json.

    Raises:
        ConfigError: Slurm does not respond.
    """
    unfinished = [
        submission
        for name, submission in folder.submissions.items()
        if not is_finished(folder.jobs[name].run_folder(folder.path))
    ]
    known = queue_states(unfinished, folder.submitit)
    return [_status(folder, spec, known) for spec in folder.jobs.values()]


def _status(folder: SweepFolder, spec: SweepJobSpec, known: dict[Submission, QueueState]) -> JobStatus:
    run = spec.run_folder(folder.path)
    submission = folder.submissions.get(spec.name)
    queued = known.get(submission) if submission else None
    live, error = False, None
    if is_finished(run):
        state = "finished"
    elif submission is None:
        state = "new"
    elif queued is not None and queued.is_live:
        waits = queued.state in ("PENDING", "REQUEUED", "REQUEUE_HOLD", "CONFIGURING")
        state, live = "pending" if waits else "running", True
        if waits and queued.reason not in _USUAL_REASONS:
            error = f"pending: {queued.reason}"
    else:
        state, error = _how_it_ended(folder, spec.name, queued)
    node = (queued.node if queued else "") or _node(folder, spec.name)
    return JobStatus(spec=spec, state=state, live=live, at=Progress.read(run, spec), node=node, error=error)


def _how_it_ended(folder: SweepFolder, name: str, queued: QueueState | None) -> tuple[str, str | None]:
    """Return the state and the error of an unfinished job that is neither queued nor running."""
    logs = folder.logs(name)
    error = last_error(logs)
    lines = since_start(logs[0]) if logs else []
    if queued is not None and queued.state in _ENDINGS:
        return _ENDINGS[queued.state], error
    if queued is None and not logs:
        return "canceled", None  # Slurm drops a task of an array that is canceled before it starts
    if error is None and STOPPED in lines:
        return "stopped", None
    if queued is not None and queued.state == LOST:
        return ("lost", queued.reason) if error is None else ("failed", error)
    began = any(STARTS in tail(log) for log in logs[:1])
    if error is None and folder.submissions[name].cluster == "local" and not began:
        return "stopped", None
    if error is None and not logs and queued is not None:
        where = f" {queued.node}" if queued.node else ""
        error = f"no log: {folder.path} may not be on a file system that the node{where} shares"
    elif error is None:
        of_task = [line for line in lines if re.match(r"srun: error: .*\btasks? ", line)]
        last = f"; last line: {(of_task or lines[-1:])[0].strip()[:160]}" if lines else ""
        error = f"ended{f' as {queued.state}' if queued else ''} without an error message{last}"
    return "failed", error


def _node(folder: SweepFolder, name: str) -> str:
    logs = folder.logs(name)
    match = re.match(r".*, on (\S+)", "\n".join(since_start(logs[0]))) if logs else None
    return match[1] if match else ""


@dataclass(frozen=True, kw_only=True)
class Progress:
    """Training progress, read from the run folder; None where unknown.

    Attributes:
        step, total: steps done and planned.
        metric: best value of `train.metric` in validation so far.
        seconds_left: training time left, at the speed of the latest step.
    """

    step: int | None = None
    total: int | None = None
    metric: float | None = None
    seconds_left: float | None = None

    @classmethod
    def read(cls, run: Path, spec: SweepJobSpec) -> "Progress":
        """Read the end of metrics.jsonl, and best.json."""
        scalars = parse_scalars(tail(run / METRICS_FILE).splitlines())
        last = {scalar.tag: (scalar.step, scalar.value) for scalar in scalars}
        metric = None
        with suppress(ConfigError):
            best = RunFolder(run).read_best()
            metric = best and best.value
        if "train/epoch" not in last:
            return cls(metric=metric)
        step, epoch = last["train/epoch"]
        train = spec.config.train
        total = round(step / epoch * train.max_epochs) if epoch > 0 else None
        if train.max_steps is not None:
            total = train.max_steps if total is None else min(total, train.max_steps)
        step = max(step, *(at for at, _ in last.values()))
        pace = last.get("perf/step_ms")
        left = None if total is None or pace is None else max(0, total - step) * pace[1] / 1e3
        if left is not None and pace is not None and train.max_minutes is not None:
            left = max(0.0, min(left, 60 * train.max_minutes - step * pace[1] / 1e3))
        return cls(step=step, total=total, metric=metric, seconds_left=left)


def print_status(statuses: list[JobStatus]) -> None:
    """Print a table with a line per job, then the errors and a summary."""
    table = new_table("run", "state", "step", "metric", "node", "left")
    for status in statuses:
        at, running = status.at, status.state == "running"
        table.add_row(
            status.spec.name,
            status.state,
            "-" if at.step is None else f"{at.step}/{at.total or '?'}",
            "-" if at.metric is None else f"{at.metric:.4f}",
            status.node or "-",
            duration(at.seconds_left) if running and at.seconds_left is not None else "-",
        )
    print_table(table)
    for status in statuses:
        if status.error:
            print(printable(f"{status.spec.name}: {status.error}"))
    print(summary(statuses), flush=True)


def summary(statuses: list[JobStatus]) -> str:
    """Return the number of jobs in each state, as one line."""
    counts = Counter(status.state for status in statuses)
    return f"{len(statuses)} runs: " + ", ".join(f"{number} {state}" for state, number in counts.items())
