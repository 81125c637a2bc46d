"""The types that all clusters share: the resources of a job, its submission and its state."""

import contextlib
import os
import signal
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Annotated, Literal

import submitit
from pydantic import Field

from longplay.common.json_files import Finite, Natural

ClusterName = Literal["slurm", "local", "debug"]
LOST = "LOST"
LIVE_STATES = frozenset(
    "PENDING RUNNING CONFIGURING COMPLETING REQUEUED REQUEUE_HOLD SUSPENDED SIGNALING STAGE_OUT RESIZING "
    "PREEMPTED STOPPED REQUEUE_FED SPECIAL_EXIT".split()
)
_SET_BY_SWEEP = frozenset(
    f"SBATCH_{name}"
    for name in "ARRAY_INX ERROR JOB_NAME NO_REQUEUE OPEN_MODE OUTPUT REQUEUE SIGNAL TIMELIMIT WAIT".split()
)


@dataclass(frozen=True, kw_only=True)
class Resources:
    """Resources of one job.

    Attributes:
        time_min: time limit of one start; a longer run saves before the limit and is requeued.
        signal_delay_s: seconds before the limit at which the run receives the signal to save.
        setup: shell lines that run before the ranks start, such as `module load`.
        max_parallel: number of jobs that may run at once; None = all on Slurm and 1 on this machine.
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
    setup: Sequence[str] = ()
    max_parallel: int | None = None

    @property
    def tasks_per_node(self) -> int:
        return self.ranks_per_node or max(1, self.gpus_per_node)

    @property
    def world_size(self) -> int:
        return self.nodes * self.tasks_per_node


@dataclass(frozen=True, kw_only=True)
class Submission:
    """A job as it was submitted.

    Attributes:
        job_id: Slurm's, or the id of the local process that runs it.
        host: the machine that submitted it.
        time: when, in seconds since 1970.
        name, uid, slurm_cluster: its name, user and cluster on Slurm; empty or None if not recorded.
    """

    cluster: ClusterName
    job_id: Annotated[str, Field(pattern=r"^[0-9]+(_[0-9]+)?$")]
    host: str
    time: Finite
    name: str = ""
    uid: Natural | None = None
    slurm_cluster: str = ""


@dataclass(frozen=True, kw_only=True)
class QueueState:
    """State of a job in its cluster.

    Attributes:
        state: one of Slurm's job states, or `LOST`: another job has its number.
        node: where it runs or ran.
        reason: why it is pending, or how it ended.
    """

    state: str
    node: str = ""
    reason: str = ""

    @property
    def is_live(self) -> bool:
        return self.state in LIVE_STATES


@contextlib.contextmanager
def outer_job_hidden(*names: str) -> Iterator[None]:
    """Unset the variables of a Slurm job or torchrun around this process.

    SLURM_CONF and SBATCH_* stay, except `names` and those that would change what a sweep relies on.
    """
    hidden = {*names, *_SET_BY_SWEEP}
    kept = {
        name: value
        for name, value in os.environ.items()
        if name == "SLURM_CONF" or (name.startswith("SBATCH_") and name not in hidden)
    }
    with submitit.helpers.clean_env():
        os.environ.update(kept)
        try:
            yield
        finally:
            for name in kept:
                os.environ.pop(name, None)


@contextlib.contextmanager
def interrupts_blocked() -> Iterator[None]:
    """Block Ctrl-C until the end of the context; processes started in it never receive it."""
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)
