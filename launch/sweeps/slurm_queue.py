"""Query and cancel a sweep's jobs on Slurm: those whose name, user, cluster and time are as submitted."""

import shutil
from collections.abc import Collection, Iterable
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path

from submitit.slurm.slurm import SlurmInfoWatcher

from longplay.launch.settings.errors import ConfigError
from longplay.launch.sweeps.cluster import LOST, QueueState, Submission
from longplay.launch.sweeps.slurm_commands import read_limits, run_slurm

_CLOCK_S = 7200.0  # clocks of two machines differ by less, and so does a change to daylight-saving time


@dataclass(frozen=True, kw_only=True)
class _Job:
    """A job as Slurm lists it; `submitted` is "" or a local time, which is later after a requeue."""

    state: QueueState
    uid: str
    submitted: str
    name: str


def slurm_states(submissions: Collection[Submission], folder: Path) -> dict[Submission, QueueState]:
    """Return the states of the jobs that squeue or sacct list.

    Slurm reuses job numbers, and a sweep's folder may move to another cluster. The state is `LOST` if the job
    of that number is not the one that was submitted.

    Args:
        folder: the sweep's submitit folder.

    Raises:
        ConfigError: Slurm does not respond.
    """
    here = read_limits().name if any(each.slurm_cluster for each in submissions) else ""
    found: dict[Submission, QueueState] = {}
    for each in submissions:
        if here and each.slurm_cluster and each.slurm_cluster != here:
            reason = f"job {each.job_id} was submitted on cluster {each.slurm_cluster}; this is {here}"
            found[each] = QueueState(state=LOST, reason=reason)
    queried = [each for each in submissions if each not in found]
    if queried:
        jobs = _listed({each.job_id for each in queried})
        for each in queried:
            job = jobs.get(each.job_id)
            if job is not None:
                ours = _is_same(job, each, folder)
                reason = f"job {each.job_id} is not this sweep's: its number was used again"
                found[each] = job.state if ours else QueueState(state=LOST, reason=reason)
    return found


def _is_same(job: _Job, submission: Submission, folder: Path) -> bool:
    """Return whether Slurm's job is the one that was submitted; older sweeps recorded only its time."""
    name = submission.name or f"longplay-{folder.parent.name}"
    if job.name != name or (submission.uid is not None and job.uid != str(submission.uid)):
        return False
    try:
        return datetime.fromisoformat(job.submitted).timestamp() > submission.time - _CLOCK_S
    except ValueError:
        return True


def _listed(job_ids: set[str]) -> dict[str, _Job]:
    """Return the jobs that squeue or sacct list under these numbers."""
    arrays = ",".join(sorted({job_id.partition("_")[0] for job_id in job_ids}))
    words = ["squeue", "--noheader", "--array", "--states=all", f"--jobs={arrays}"]
    done = run_slurm(*words, "--format=%i|%T|%N|%r|%U|%V|%j")
    if done.returncode and "Invalid job id" not in done.stderr:
        raise ConfigError(f"Slurm does not respond: {' '.join(done.stderr.split())[:200]}; try later")
    found: dict[str, _Job] = {}
    for line in done.stdout.splitlines():
        job_id, state, node, reason, uid, submitted, name = (line.strip().split("|", 6) + [""] * 6)[:7]
        queued = QueueState(state=state, node=node, reason="" if reason == "None" else reason)
        found[job_id] = _Job(state=queued, uid=uid, submitted=submitted, name=name)
    gone = job_ids - found.keys()
    if gone and shutil.which("sacct"):
        watcher = SlurmInfoWatcher()
        fields = "JobID,State,NodeList,UID,Submit,JobName"
        done = run_slurm("sacct", "-X", "-o", fields, "--parsable2", "-j", arrays)
        for job_id, info in watcher.read_info(done.stdout).items():
            if job_id in gone and info.get("State"):
                state, node = info["State"], info.get("NodeList", "")
                queued = QueueState(state=state.split()[0], node=node, reason=state)
                found[job_id] = _Job(
                    state=queued,
                    uid=info.get("UID", ""),
                    submitted=info.get("Submit", ""),
                    name=info.get("JobName", ""),
                )
    return found


def cancel_on_slurm(job_ids: Iterable[str]) -> None:
    """Cancel jobs; a run in training saves first.

    Raises:
        ConfigError: scancel fails.
    """
    done = run_slurm("scancel", *job_ids)
    if done.returncode:
        raise ConfigError(f"scancel: {' '.join(done.stderr.split())[:200]}")
