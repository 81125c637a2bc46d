"""How far a sweep's runs are: from their folders, and from the cluster for those that have not finished."""

import json
import re
from collections import Counter
from dataclasses import dataclass
from pathlib import Path

from longplay.launch.run_folders.metrics_file import METRICS_FILE, parse_scalars
from longplay.launch.settings.errors import ConfigError
from longplay.launch.sweeps.cluster import QueueState, queue_states
from longplay.launch.sweeps.folder import SweepFolder
from longplay.launch.sweeps.grid import SweepJobSpec
from longplay.launch.sweeps.job import is_finished
from longplay.launch.sweeps.job_log import STARTS, last_error, since_start, tail

# Reasons to wait that pass by themselves; another may need a change of the command.
_PATIENCE = (
    "",
    "Priority",
    "Resources",
    "JobArrayTaskLimit",
    "BeginTime",
    "Prolog",
    "Cleaning",
    "NonZeroExitCode",
)
_ENDINGS = {
    "CANCELLED": "cancelled",
    "TIMEOUT": "out of time",
    "OUT_OF_MEMORY": "out of memory",
    "NODE_FAIL": "lost its node",
}


@dataclass(frozen=True, kw_only=True)
class JobStatus:
    """Where a job of a sweep stands.

    Attributes:
        state: "new" (never submitted), "pending", "running", "finished", "stopped" (saved, to be submitted
            again), "failed", or how else it ended.
        live: whether the cluster has it, so that it is left alone.
        step, total: of its training, as far as they are known.
        metric: best of the validations so far; its name is `train.metric`.
        node: where it runs or ran last.
        seconds_left: of its training, at the pace of the latest step.
        error: its last error, or an unusual reason to wait, in a line.
    """

    spec: SweepJobSpec
    state: str
    live: bool
    step: int | None = None
    total: int | None = None
    metric: float | None = None
    node: str = ""
    seconds_left: float | None = None
    error: str | None = None


def sweep_status(folder: SweepFolder, *, ask_cluster: bool = True) -> list[JobStatus]:
    """The status of every job, in the order of sweep.json.

    Args:
        ask_cluster: False reads the folder alone; what would be live is then "submitted".
    Raises:
        ConfigError: Slurm does not answer.
    """
    unfinished = [
        submission
        for name, submission in folder.submissions.items()
        if not is_finished(folder.jobs[name].run(folder.path))
    ]
    known = queue_states(unfinished, folder.submitit) if ask_cluster else {}
    return [_status(folder, spec, known, ask_cluster) for spec in folder.jobs.values()]


def _status(folder: SweepFolder, spec: SweepJobSpec, known: dict[str, QueueState], asked: bool) -> JobStatus:
    run = spec.run(folder.path)
    submission = folder.submissions.get(spec.name)
    queued = known.get(submission.job_id) if submission else None
    live, error = False, None
    if is_finished(run):
        state = "finished"
    elif submission is None:
        state = "new"
    elif queued is not None and queued.is_live:
        waits = queued.state in ("PENDING", "REQUEUED", "REQUEUE_HOLD", "CONFIGURING")
        state, live = "pending" if waits else "running", True
        if waits and queued.reason not in _PATIENCE:
            error = f"waits for {queued.reason}"
    elif not asked:
        state = "submitted"
    else:
        state, error = _how_it_ended(folder, spec.name, queued)
    at = Progress.read(run, spec)
    return JobStatus(
        spec=spec,
        state=state,
        live=live,
        step=at.step,
        total=at.total,
        metric=at.metric,
        node=(queued.node if queued else "") or _node(folder, spec.name),
        seconds_left=at.seconds_left if state == "running" else None,
        error=error,
    )


def _how_it_ended(folder: SweepFolder, name: str, queued: QueueState | None) -> tuple[str, str | None]:
    """State and error of a job that the cluster no longer has and that did not finish."""
    logs = folder.logs(name)
    error = last_error(logs)
    said = since_start(logs[0]) if logs else []
    if queued is not None and queued.state in _ENDINGS:
        return _ENDINGS[queued.state], error
    if queued is None and not logs:
        return "cancelled", None  # Slurm forgets an array's task that is cancelled before it starts
    if error is None and any("stopped on request" in line for line in said):
        return "stopped", None
    began = any(STARTS in tail(log) for log in logs[:1])
    if error is None and folder.submissions[name].cluster == "local" and not began:
        return "stopped", None
    if error is None and not logs and queued is not None:
        where = f" {queued.node}" if queued.node else ""
        error = f"left no log: {folder.path} may not be on a file system that the node{where} shares"
    elif error is None:
        of_task = [line for line in said if re.match(r"srun: error: .*\btasks? ", line)]
        last = f"; last said: {(of_task or said[-1:])[0].strip()[:160]}" if said else ""
        error = f"ended{f' as {queued.state}' if queued else ''} without an error of its own{last}"
    return "failed", error


def _node(folder: SweepFolder, name: str) -> str:
    logs = folder.logs(name)
    match = re.match(r".*, on (\S+)", "\n".join(since_start(logs[0]))) if logs else None
    return match[1] if match else ""


@dataclass(frozen=True, kw_only=True)
class Progress:
    """What a run folder says of a training on its way."""

    step: int | None = None
    total: int | None = None
    metric: float | None = None
    seconds_left: float | None = None

    @classmethod
    def read(cls, run: Path, spec: SweepJobSpec) -> "Progress":
        """From the end of metrics.jsonl, and best.json."""
        scalars = parse_scalars(tail(run / METRICS_FILE).splitlines())
        last = {tag: (step, value) for step, tag, value in scalars}
        try:
            metric = float(json.loads((run / "best.json").read_text())["value"])
        except (OSError, ValueError, KeyError, TypeError):
            metric = None
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
        return cls(step=step, total=total, metric=metric, seconds_left=left)


# ---------------------------------------------------------------------- as text


def as_table(statuses: list[JobStatus]) -> str:
    """One line per job, below it the error of one that failed; a summary at the end."""
    header = ("run", "state", "step", "metric", "node", "left")
    rows = [
        (
            status.spec.name,
            status.state,
            "-" if status.step is None else f"{status.step}/{status.total or '?'}",
            "-" if status.metric is None else f"{status.metric:.4f}",
            status.node or "-",
            duration(status.seconds_left),
        )
        for status in statuses
    ]
    widths = [max(len(row[column]) for row in (header, *rows)) for column in range(len(header))]
    lines = ["  ".join(cell.ljust(width) for cell, width in zip(header, widths, strict=True)).rstrip()]
    for status, row in zip(statuses, rows, strict=True):
        lines.append("  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip())
        if status.error:
            lines.append(f"    {status.error}")
    return "\n".join([*lines, summary(statuses)])


def summary(statuses: list[JobStatus]) -> str:
    """How many jobs are in which state."""
    counts = Counter(status.state for status in statuses)
    return f"{len(statuses)} runs: " + ", ".join(f"{number} {state}" for state, number in counts.items())


def duration(seconds: float | None) -> str:
    """Seconds as a person says them: 40 s, 12 min, 3.5 h."""
    if seconds is None:
        return "-"
    if seconds < 100:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 6000 else f"{seconds / 3600:.1f} h"


def open_sweep(path: Path) -> SweepFolder:
    """A sweep that was begun.

    Raises:
        ConfigError: there is none.
    """
    folder = SweepFolder(path)
    if not folder.jobs:
        raise ConfigError(
            f"--out {path}: holds no sweep (no sweep.json); begin one with longplay sweep --data"
        )
    return folder
