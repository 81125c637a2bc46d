"""Where a sweep's jobs run: an array on Slurm, processes on this machine, or this process; by submitit."""

import contextlib
import io
import os
import re
import shutil
import signal
import socket
import subprocess
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import submitit
from submitit.core.utils import FailedJobError
from submitit.slurm.slurm import SlurmInfoWatcher

from longplay.launch.settings.errors import ConfigError
from longplay.launch.sweeps.job import NOT_SHARED, SweepJob

ClusterName = Literal["slurm", "local", "debug"]
LIVE_STATES = ("PENDING", "RUNNING", "CONFIGURING", "COMPLETING", "REQUEUED", "REQUEUE_HOLD", "SUSPENDED")
LIVE_STATES += ("SIGNALING", "STAGE_OUT", "RESIZING", "PREEMPTED", "STOPPED", "REQUEUE_FED", "SPECIAL_EXIT")
_MAX_REQUEUES = 1000
_ANSWER_S = 60.0  # how long Slurm's commands may take
_YEAR_MIN = 525_600


@dataclass(frozen=True, kw_only=True)
class Resources:
    """What one job of the sweep gets.

    Attributes:
        time_min: limit of one start; a job that is not done by then saves, is requeued and goes on.
        signal_delay_s: seconds before the limit at which it is told.
        setup: lines of shell before the job's ranks start, such as `module load`.
        max_parallel: how many jobs may run at once.
    """

    nodes: int = 1
    gpus_per_node: int = 0
    ranks_per_node: int | None = None
    cpus_per_task: int | None = None
    mem: str | None = None
    time_min: int = 24 * 60
    signal_delay_s: int = 120
    partition: str | None = None
    account: str | None = None
    qos: str | None = None
    constraint: str | None = None
    setup: tuple[str, ...] = ()
    max_parallel: int | None = None

    @property
    def tasks_per_node(self) -> int:
        return self.ranks_per_node or max(1, self.gpus_per_node)

    @property
    def world_size(self) -> int:
        return self.nodes * self.tasks_per_node


@dataclass(frozen=True, kw_only=True)
class Submission:
    """One job as it was handed in: `job_id` is Slurm's, or the process id of what runs it here."""

    cluster: ClusterName
    job_id: str
    host: str
    time: float


@dataclass(frozen=True, kw_only=True)
class QueueState:
    """What the cluster says about a job.

    Attributes:
        state: in Slurm's words.
        node: where it runs or ran.
        reason: why it waits, or how it ended.
    """

    state: str
    node: str = ""
    reason: str = ""

    @property
    def is_live(self) -> bool:
        return self.state in LIVE_STATES


# ---------------------------------------------------------------------- which cluster


def choose_cluster(asked: ClusterName | None) -> ClusterName:
    """Slurm where it is set up, else this machine; checked to answer.

    Raises:
        ConfigError: Slurm was asked for, or is set up, and does not answer.
    """
    if asked in ("local", "debug"):
        return asked
    if not shutil.which("sbatch"):
        if asked is None:
            return "local"
        raise ConfigError("--cluster slurm: there is no sbatch here; go to a login node, or take local")
    done = _ask("scontrol", "ping")
    if done.returncode == 0 and " UP" in done.stdout:
        if not shutil.which("srun"):
            raise ConfigError("--cluster slurm: there is no srun here; install Slurm's client, or take local")
        return "slurm"
    said = " ".join((done.stdout + done.stderr).split())
    if asked is None and ("configuration source" in said or "slurm.conf" in said):
        return "local"  # Slurm's commands are here, and no cluster
    raise ConfigError(
        f"Slurm's controller does not answer ({said[:200]}); try later, or take --cluster local"
    )


def _ask(*words: str) -> subprocess.CompletedProcess[str]:
    try:
        return subprocess.run(words, capture_output=True, text=True, timeout=_ANSWER_S)
    except subprocess.TimeoutExpired:
        raise ConfigError(f"{words[0]}: no answer from Slurm in {_ANSWER_S:.0f} s; try later") from None
    except FileNotFoundError:
        raise ConfigError(f"{words[0]}: is not here; Slurm's client commands are needed") from None


# ---------------------------------------------------------------------- submitting


def submit_to_slurm(
    jobs: Sequence[SweepJob], folder: Path, resources: Resources, name: str
) -> list[Submission]:
    """Submit the jobs as one array.

    Raises:
        ConfigError: sbatch refuses, with its reason.
    """
    executor = submitit.SlurmExecutor(folder=folder, max_num_timeout=_MAX_REQUEUES)
    signal_delay_s = min(resources.signal_delay_s, 60 * resources.time_min // 2)
    optional = {
        "cpus_per_task": resources.cpus_per_task,
        "gpus_per_node": resources.gpus_per_node or None,
        "mem": resources.mem,
        "partition": resources.partition,
        "account": resources.account,
        "qos": resources.qos,
        "constraint": resources.constraint,
        "array_parallelism": resources.max_parallel,
    }
    srun = ["--kill-on-bad-exit=1", "--open-mode=append"]
    if resources.cpus_per_task:
        srun.append(f"--cpus-per-task={resources.cpus_per_task}")  # Slurm no longer hands it on by itself
    executor.update_parameters(
        job_name=name,
        time=resources.time_min,
        nodes=resources.nodes,
        ntasks_per_node=resources.tasks_per_node,
        signal_delay_s=signal_delay_s,
        stderr_to_stdout=True,
        setup=_setup(folder, resources),
        srun_args=srun,
        additional_parameters={"requeue": True, "signal": f"USR2@{signal_delay_s}"},
        **{key: value for key, value in optional.items() if value is not None},
    )
    try:
        with surroundings_forgotten(), interrupts_held(), contextlib.redirect_stderr(io.StringIO()):
            submitted = executor.submit_array(list(jobs))  # it prints what sbatch said, and so do we
    except FailedJobError as error:
        for pickle in folder.glob("*.pkl"):
            if re.fullmatch("[0-9a-f]{32}", pickle.stem):
                pickle.unlink()
        raise ConfigError(_refusal(str(error), resources)) from None
    now = time.time()
    return [
        Submission(cluster="slurm", job_id=job.job_id, host=socket.gethostname(), time=now)
        for job in submitted
    ]


def _setup(folder: Path, resources: Resources) -> list[str]:
    threads = "${OMP_NUM_THREADS:-${SLURM_CPUS_PER_TASK:-1}}"
    quoted = str(folder).replace("'", "'\\''")
    return [
        f"[ -d '{quoted}' ] || exit {NOT_SHARED}",
        "export SUBMITIT_PREEMPT_SIGNAL=USR2 PYTHONUNBUFFERED=1",
        *resources.setup,
        f"export OMP_NUM_THREADS={threads}",
    ]


def _refusal(said: str, resources: Resources) -> str:
    """Why sbatch refused, in one line, with what there is where a partition was not found."""
    lines = [re.sub(r"^sbatch: (error: )?", "", line).strip() for line in said.splitlines() if line.strip()]
    reason = next((line for line in lines if "failed:" in line), lines[-1] if lines else "no reason given")
    reason = reason.rpartition("failed: ")[2]
    if "partition" in reason.lower():
        there = sorted(set(_ask("sinfo", "--noheader", "--format=%R").stdout.split()))
        return f"--partition {resources.partition}: {reason}; there are {', '.join(there) or 'none'}"
    return f"sbatch refuses: {reason}"


def submit_locally(job: SweepJob, folder: Path, resources: Resources) -> tuple[Submission, Any]:
    """Start one job on this machine; also submitit's handle of it."""
    executor = submitit.LocalExecutor(folder=folder, max_num_timeout=_MAX_REQUEUES)
    executor.update_parameters(
        tasks_per_node=resources.tasks_per_node,
        gpus_per_node=resources.gpus_per_node,
        timeout_min=_YEAR_MIN,
        stderr_to_stdout=True,
        setup=list(resources.setup),
    )
    # Ctrl-C is for the sweep, which then asks its jobs to save: it must not reach them too.
    with surroundings_forgotten(), interrupts_held():
        handle = executor.submit(job)
    submission = Submission(
        cluster="local", job_id=handle.job_id, host=socket.gethostname(), time=time.time()
    )
    return submission, handle


def run_here(job: SweepJob, folder: Path) -> int:
    """Run one job in this process, through submitit's debug executor; its exit code."""
    handle = submitit.DebugExecutor(folder=folder).submit(job)
    try:
        error = handle.exception()
    except SystemExit as left:
        return left.code if isinstance(left.code, int) else 1
    if error is not None:
        raise error
    return 0


@contextlib.contextmanager
def surroundings_forgotten() -> Iterator[None]:
    """Hide the job or torchrun that this process is part of from those it starts; not which Slurm to use."""
    kept = {
        name: value
        for name, value in os.environ.items()
        if name == "SLURM_CONF" or name.startswith("SBATCH_")
    }
    with submitit.helpers.clean_env():
        os.environ.update(kept)
        try:
            yield
        finally:
            for name in kept:
                os.environ.pop(name, None)


@contextlib.contextmanager
def interrupts_held() -> Iterator[None]:
    """Keep Ctrl-C waiting; processes started meanwhile never see it."""
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


# ---------------------------------------------------------------------- what became of them


def queue_states(submissions: Iterable[Submission], folder: Path) -> dict[str, QueueState]:
    """Job id -> state, of those that the cluster knows.

    Raises:
        ConfigError: Slurm does not answer.
    """
    slurm = [each.job_id for each in submissions if each.cluster == "slurm"]
    found = _slurm_states(slurm) if slurm else {}
    for each in submissions:
        if each.cluster == "local" and local_process_is_alive(each, folder):
            found[each.job_id] = QueueState(state="RUNNING", node=each.host)
    return found


def _slurm_states(job_ids: list[str]) -> dict[str, QueueState]:
    arrays = sorted({job_id.partition("_")[0] for job_id in job_ids})
    words = ["squeue", "--noheader", "--array", "--states=all", f"--jobs={','.join(arrays)}"]
    done = _ask(*words, "--format=%i|%T|%N|%r")
    if done.returncode and "Invalid job id" not in done.stderr:
        raise ConfigError(f"Slurm does not answer: {' '.join(done.stderr.split())[:200]}; try later")
    found: dict[str, QueueState] = {}
    for line in done.stdout.splitlines():
        job_id, state, node, reason = line.strip().split("|", 3)
        found[job_id] = QueueState(state=state, node=node, reason="" if reason == "None" else reason)
    gone = [job_id for job_id in job_ids if job_id not in found]
    if gone and shutil.which("sacct"):
        watcher = SlurmInfoWatcher()
        for job_id in gone:
            watcher.register_job(job_id)
        done = _ask("sacct", "-X", "-o", "JobID,State,NodeList", "--parsable2", "-j", ",".join(arrays))
        for job_id, info in watcher.read_info(done.stdout).items():
            if job_id in gone and info.get("State"):
                found[job_id] = QueueState(
                    state=info["State"].split()[0], node=info.get("NodeList", ""), reason=info["State"]
                )
    return found


def local_process_is_alive(submission: Submission, folder: Path) -> bool:
    """Whether the process that runs a local job is there: on this machine, and submitit's for this sweep."""
    if submission.host != socket.gethostname():
        return False
    try:
        words = Path(f"/proc/{submission.job_id}/cmdline").read_bytes().split(b"\0")
    except OSError:
        return False
    return b"submitit.local._local" in words and os.fsencode(folder) in words


def cancel(submissions: Iterable[Submission], folder: Path) -> None:
    """End jobs; a run that trains saves first.

    Raises:
        ConfigError: scancel fails.
    """
    slurm = [each.job_id for each in submissions if each.cluster == "slurm"]
    if slurm:
        done = _ask("scancel", *slurm)
        if done.returncode:
            raise ConfigError(f"scancel: {' '.join(done.stderr.split())[:200]}")
    for each in submissions:
        if each.cluster == "local" and local_process_is_alive(each, folder):
            with contextlib.suppress(ProcessLookupError):
                os.kill(int(each.job_id), signal.SIGTERM)  # it hands the signal on to its ranks


class LocalQueue:
    """Runs jobs on this machine, so many at a time; used as a context, whose end leaves none behind.

    Args:
        started, ended: told of each job as it starts, with its submission, and as it ends.
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
        self.running: list[tuple[SweepJob, Submission, Any]] = []

    def __enter__(self) -> "LocalQueue":
        return self

    def __exit__(self, *exc_info: object) -> None:
        """Ask what still runs to save, and wait for it."""
        cancel([submission for _, submission, _ in self.running], self.folder)
        while self.running:
            self._collect()

    def run(self, jobs: Sequence[SweepJob], *, poll: Callable[[], None] = lambda: None) -> None:
        """Run all of them; returns when the last has ended."""
        waiting = list(jobs)
        while waiting or self.running:
            while waiting and len(self.running) < (self.resources.max_parallel or 1):
                job = waiting.pop(0)
                submission, handle = submit_locally(job, self.folder, self.resources)
                self.running.append((job, submission, handle))
                self.started(job, submission)
            self._collect()
            poll()

    def _collect(self) -> None:
        time.sleep(0.1)
        for entry in list(self.running):
            job, _, handle = entry
            if handle.done():
                self.running.remove(entry)
                self.ended(job)
