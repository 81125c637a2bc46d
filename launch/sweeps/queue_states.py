"""Query and cancel the jobs of a sweep, on Slurm and on this machine."""

from collections.abc import Iterable
from pathlib import Path

from longplay.launch.sweeps.cluster import QueueState, Submission
from longplay.launch.sweeps.local_jobs import local_job_is_alive, stop_local_job
from longplay.launch.sweeps.slurm_queue import cancel_on_slurm, slurm_states


def queue_states(submissions: Iterable[Submission], folder: Path) -> dict[Submission, QueueState]:
    """Return the states of the jobs that their cluster still lists.

    Args:
        folder: the sweep's submitit folder.

    Raises:
        ConfigError: Slurm does not respond.
    """
    submissions = list(submissions)
    slurm = [each for each in submissions if each.cluster == "slurm"]
    states = slurm_states(slurm, folder) if slurm else {}
    for each in submissions:
        if each.cluster == "local" and local_job_is_alive(each, folder):
            states[each] = QueueState(state="RUNNING", node=each.host)
    return states


def cancel(submissions: Iterable[Submission], folder: Path) -> None:
    """Cancel jobs; a run in training saves first.

    Raises:
        ConfigError: scancel fails.
    """
    submissions = list(submissions)
    slurm = [each.job_id for each in submissions if each.cluster == "slurm"]
    if slurm:
        cancel_on_slurm(slurm)
    for each in submissions:
        if each.cluster == "local":
            stop_local_job(each, folder)
