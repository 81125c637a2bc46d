"""A sweep's jobs on Slurm: submit them as job arrays through submitit."""

import contextlib
import io
import os
import re
import shlex
import shutil
import socket
import sys
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import submitit
from submitit.core.utils import FailedJobError

from longplay.launch.settings.errors import ConfigError
from longplay.launch.sweeps.cluster import (
    ClusterName,
    Resources,
    Submission,
    interrupts_blocked,
    outer_job_hidden,
)
from longplay.launch.sweeps.job import SweepJob
from longplay.launch.sweeps.slurm_commands import read_limits, run_slurm

_NOT_SHARED = 66  # exit code of a job on a node where the sweep's folder does not exist
_HERE = Path(__file__).parent
# sbatch prefers these variables to the script, so an option that is given hides its own and its alternatives.
_VARIABLES = {
    "gpus_per_node": ("GPUS_PER_NODE", "GPUS", "GPUS_PER_TASK", "GRES"),
    "mem": ("MEM_PER_NODE", "MEM_PER_CPU", "MEM_PER_GPU"),
    "partition": ("PARTITION",),
    "account": ("ACCOUNT",),
    "qos": ("QOS",),
    "constraint": ("CONSTRAINT",),
}


def choose_cluster(requested: ClusterName | None) -> ClusterName:
    """Return `requested`, or "slurm" where Slurm is set up and "local" elsewhere.

    Raises:
        ConfigError: Slurm was requested, or is set up, and does not respond.
    """
    if requested in ("local", "debug"):
        return requested
    if not shutil.which("sbatch"):
        if requested is None:
            return "local"
        raise ConfigError("--cluster slurm: no sbatch on this machine; use a login node or --cluster local")
    done = run_slurm("scontrol", "ping")
    answer = " ".join((done.stdout + done.stderr).split())
    if done.returncode == 0 and " UP" in answer:
        if not shutil.which("srun"):
            raise ConfigError(
                "--cluster slurm: no srun on this machine; install Slurm's client or use --cluster local"
            )
        return "slurm"
    if requested is None and ("configuration source" in answer or "slurm.conf" in answer):
        return "local"  # Slurm's commands are installed, but no cluster is configured
    raise ConfigError(
        f"Slurm's controller does not respond ({answer[:200]}); try later or use --cluster local"
    )


def submit_to_slurm(
    jobs: Sequence[SweepJob], folder: Path, resources: Resources, name: str
) -> Iterator[list[Submission]]:
    """Submit the jobs as one array, or as several if the cluster limits the size of an array.

    With `resources.max_parallel`, each array starts after the one before it has ended.

    Args:
        folder: where submitit keeps its files and the logs; all nodes must share it.
        name: name of the arrays, which no other job has.

    Yields:
        The submissions of the next jobs, after each array.

    Raises:
        ConfigError: sbatch rejects an array; the message has its reason.
    """
    executor = submitit.SlurmExecutor(
        folder=folder, python=shlex.join(["bash", str(_HERE / "rank.sh"), sys.executable])
    )
    executor.update_parameters(**_sbatch_parameters(folder, resources, name))
    limits = read_limits()
    for start in range(0, len(jobs), limits.max_array_tasks):
        part = jobs[start : start + limits.max_array_tasks]
        executor.update_parameters(array_parallelism=resources.max_parallel or len(part))
        try:
            submitted = _submit_array(executor, part, resources)
        except FailedJobError as error:
            for pickle in folder.glob("*.pkl"):
                if re.fullmatch("[0-9a-f]{32}", pickle.stem):
                    pickle.unlink()
            done = (
                f"; submitted {start} of {len(jobs)} jobs, repeat the command for the rest" if start else ""
            )
            raise ConfigError(_refusal(str(error), resources) + done) from None
        about = {"host": socket.gethostname(), "time": time.time(), "name": name, "uid": os.getuid()}
        yield [
            Submission(cluster="slurm", job_id=job_id, slurm_cluster=limits.name, **about)
            for job_id in submitted
        ]
        if resources.max_parallel:
            executor.update_parameters(dependency=f"afterany:{submitted[0].partition('_')[0]}")


def _submit_array(
    executor: submitit.SlurmExecutor, jobs: Sequence[SweepJob], resources: Resources
) -> list[str]:
    """Submit one array and return the ids of its jobs."""
    hidden = [
        f"SBATCH_{name}"
        for option, names in _VARIABLES.items()
        if getattr(resources, option)
        for name in names
    ]
    # submitit prints sbatch's message to stderr; the ConfigError has it already.
    with outer_job_hidden(*hidden), interrupts_blocked(), contextlib.redirect_stderr(io.StringIO()):
        return [job.job_id for job in executor.submit_array(list(jobs))]


def _sbatch_parameters(folder: Path, resources: Resources, name: str) -> dict[str, Any]:
    """Return submitit's parameters, without those that are left to the cluster's defaults."""
    signal_delay_s = min(resources.signal_delay_s, 60 * resources.time_min // 2)
    optional = {
        "cpus_per_task": resources.cpus_per_task,
        "gpus_per_node": resources.gpus_per_node or None,
        "mem": resources.mem,
        "partition": resources.partition,
        "account": resources.account,
        "qos": resources.qos,
        "constraint": resources.constraint,
    }
    srun = ["--kill-on-bad-exit=1", "--open-mode=append"]
    if resources.cpus_per_task:
        srun.append(f"--cpus-per-task={resources.cpus_per_task}")  # srun no longer takes it from sbatch
    return {
        "job_name": name,
        "time": resources.time_min,
        "nodes": resources.nodes,
        "ntasks_per_node": resources.tasks_per_node,
        "wckey": None,  # submitit's default is its own name, which a cluster with wckeys rejects
        "stderr_to_stdout": True,
        "setup": _setup(folder, resources),
        "srun_args": srun,
        "additional_parameters": {"requeue": True, "signal": f"USR1@{signal_delay_s}"},
        **{key: value for key, value in optional.items() if value is not None},
    }


def _setup(folder: Path, resources: Resources) -> list[str]:
    """Return the lines of the batch script before srun."""
    quoted = shlex.quote(str(folder))
    return [
        f"[ -d {quoted} ] || exit {_NOT_SHARED}",
        f"source {shlex.quote(str(_HERE / 'requeue.sh'))}",
        f"start_outcome {quoted}",
        "trap requeue_if_saved EXIT",
        "export PYTHONUNBUFFERED=1",
        *resources.setup,
        "export OMP_NUM_THREADS=${OMP_NUM_THREADS:-${SLURM_CPUS_PER_TASK:-1}}",
    ]


def _refusal(answer: str, resources: Resources) -> str:
    """Return sbatch's reason in one line; for an unknown partition, list the existing ones."""
    lines = [re.sub(r"^sbatch: (error: )?", "", line).strip() for line in answer.splitlines() if line.strip()]
    reason = next((line for line in lines if "failed:" in line), lines[-1] if lines else "no reason given")
    reason = reason.rpartition("failed: ")[2]
    if "partition" in reason.lower():
        partitions = sorted(set(run_slurm("sinfo", "--noheader", "--format=%R").stdout.split()))
        return f"--partition {resources.partition}: {reason}; available: {', '.join(partitions) or 'none'}"
    return f"sbatch rejected the jobs: {reason}"
