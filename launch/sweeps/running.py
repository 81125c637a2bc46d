"""Submit the jobs of a sweep to Slurm, or run them on this machine."""

import itertools
import re
import uuid

from longplay.common.printable import printable
from longplay.launch.console.exit_codes import EXIT_FAILED, EXIT_INTERRUPTED
from longplay.launch.console.signals import terminable
from longplay.launch.settings.errors import ConfigError
from longplay.launch.sweeps.cluster import Resources, Submission
from longplay.launch.sweeps.folder import SweepFolder
from longplay.launch.sweeps.job import SweepJob
from longplay.launch.sweeps.local_jobs import LocalQueue, run_in_this_process
from longplay.launch.sweeps.slurm_jobs import submit_to_slurm
from longplay.launch.sweeps.status import sweep_status
from longplay.launch.sweeps.watching import print_verdict


def submit(folder: SweepFolder, jobs: list[SweepJob], resources: Resources) -> None:
    """Submit the jobs to Slurm as job arrays and record their ids in sweep.json.

    Raises:
        ConfigError: sbatch rejects the submission; the message has its reason.
    """
    waiting, arrays = iter(jobs), []
    plain = re.sub(r"[^\w.-]", "-", folder.path.name)
    name = f"longplay-{plain}-{uuid.uuid4().hex[:8]}"
    for submitted in submit_to_slurm(jobs, folder.submitit, resources, name):
        for job, submission in zip(itertools.islice(waiting, len(submitted)), submitted, strict=True):
            folder.submissions[job.spec.name] = submission
        folder.write()
        array = submitted[0].job_id.partition("_")[0]
        arrays.append(array)
        print(f"jobs     {len(submitted)} as array {array}; logs: {folder.submitit}/{array}_*_log.out")
    print(f"cancel   longplay sweep --out {folder.path} --cancel, or scancel {' '.join(arrays)}")


def run_one_by_one(folder: SweepFolder, jobs: list[SweepJob], resources: Resources) -> int:
    """Run the jobs in this process and return the command's exit code."""
    _check_one_node(resources, "debug")
    failed = [job.spec.name for job in jobs if run_in_this_process(job, folder.submitit)]
    names = f": {', '.join(failed)}" if failed else ""
    print(f"ended    {len(jobs) - len(failed)} finished, {len(failed)} failed{names}", flush=True)
    return EXIT_FAILED if failed else 0


def run_in_processes(folder: SweepFolder, jobs: list[SweepJob], resources: Resources) -> int:
    """Run the jobs in separate processes, wait for them, and return the command's exit code."""
    _check_one_node(resources, "local")

    def started(job: SweepJob, submission: Submission) -> None:
        folder.submissions[job.spec.name] = submission
        folder.write()
        print(f"started  {job.spec.name}: {folder.submitit}/{submission.job_id}_0_log.out", flush=True)

    def ended(job: SweepJob) -> None:
        status = next(each for each in sweep_status(folder) if each.spec.name == job.spec.name)
        metric = "" if status.at.metric is None else f", best validation {status.at.metric:.4f}"
        error = f": {printable(status.error)}" if status.error else ""
        print(f"{status.state:<8} {job.spec.name}{metric}{error}", flush=True)

    try:
        with terminable(), LocalQueue(folder.submitit, resources, started=started, ended=ended) as queue:
            queue.run(jobs)
    except KeyboardInterrupt:
        print(
            f"stopped; the running jobs have saved. To resume: longplay sweep --out {folder.path}", flush=True
        )
        return EXIT_INTERRUPTED
    names = {job.spec.name for job in jobs}
    return print_verdict([status for status in sweep_status(folder) if status.spec.name in names])


def _check_one_node(resources: Resources, cluster: str) -> None:
    if resources.nodes > 1:
        raise ConfigError(f"--nodes {resources.nodes}: --cluster {cluster} runs on one node; set --nodes 1")
