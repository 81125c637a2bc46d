"""The batch scripts with a stub for training: arguments, ranks, signals and error messages."""

import os
import signal
from pathlib import Path

import pytest
from local_cluster import ClusterConfig, LocalCluster
from support.slurm_jobs import REPOSITORY, Job, sbatch, submit

# Replaces `python -m longplay.launch.train RECIPE ...`; MODE selects its behavior.
STUB = """#!/bin/bash
echo "rank $SLURM_PROCID of $SLURM_NTASKS on $SLURMD_NODENAME: $(printf '<%s>' "$@")"
trap 'exit 75' TERM USR1
case $MODE in
  save_once) [[ ${SLURM_RESTART_COUNT:-0} == 0 ]] || exit 0 ;;
  fail) echo "longplay: error: no such thing" >&2; exit 2 ;;
  end) exit 0 ;;
esac
: > "$RUN/logs/rank$SLURM_PROCID"
while :; do sleep 0.1; done
"""


class Workspace:
    """A checkout and folders whose names contain spaces, and a stub for Python."""

    def __init__(self, cluster: LocalCluster, folder: Path) -> None:
        self.cluster = cluster
        self.home = folder / "my checkout"
        self.home.symlink_to(REPOSITORY)
        self.submit_folder = folder / "submit from"
        self.data = folder / "my data"
        self.data.mkdir()
        (self.data / "manifest.json").write_text("{}")
        self.run = folder / "my run"
        # proctrack/linuxproc, which forwards signals, cannot parse /proc/PID/stat of a name with spaces.
        self.python = folder / "stub"
        self.python.write_text(STUB)
        self.python.chmod(0o755)

    def variables(self, mode: str) -> dict[str, object]:
        return {"DATA": self.data, "RUN": self.run, "PYTHON": self.python, "MODE": mode}

    def submit(self, mode: str, *words: str, name: str = "ml1m", **variables: object) -> Job:
        script = self.home / "slurm" / f"train_{name}.sh"
        return submit(
            self.cluster, self.submit_folder, script, *words, variables={**self.variables(mode), **variables}
        )

    def log(self, job: Job) -> str:
        return (self.run / "logs" / f"{job.number}.log").read_text()

    def wait_for_ranks(self, job: Job, number: int) -> None:
        job.wait(lambda: len(list((self.run / "logs").glob("rank*"))) == number, "ranks")
        for path in (self.run / "logs").glob("rank*"):
            path.unlink()


@pytest.fixture
def workspace(slurm_cluster: LocalCluster, tmp_path: Path) -> Workspace:
    return Workspace(slurm_cluster, tmp_path)


def errors(text: str) -> list[str]:
    """Return the error lines, without those of slurmstepd about a requeued or canceled job."""
    lines = [line for line in text.splitlines() if not line.startswith("slurmstepd")]
    return [line for line in lines if "error" in line.lower()]


def test_each_gpu_gets_a_rank_with_the_given_arguments(workspace: Workspace) -> None:
    job = workspace.submit("end", "--train.lr", "0.001", "--evaluation.cutoffs", "5, 10")
    assert job.wait_for_end() == "COMPLETED", job.printed()
    ranks = sorted(line for line in workspace.log(job).splitlines() if line.startswith("rank "))
    words = [
        "-m",
        "longplay.launch.train",
        "ml1m",
        "--data",
        str(workspace.data),
        "--run",
        str(workspace.run),
    ]
    words += ["--train.lr", "0.001", "--evaluation.cutoffs", "5, 10"]
    expected = "".join(f"<{word}>" for word in words)
    assert ranks == [f"rank {n} of 4 on node{1 + n // 2}: {expected}" for n in range(4)]
    assert job.printed().splitlines()[-1] == f"longplay: finished: {workspace.run}"


@pytest.mark.parametrize("name", ["lfm5k", "kuairand5k"])
def test_each_script_trains_its_recipe(workspace: Workspace, name: str) -> None:
    script = workspace.home / "slurm" / f"train_{name}.sh"
    job = submit(
        workspace.cluster,
        workspace.submit_folder,
        script,
        options=("--nodes=1",),
        variables=workspace.variables("end"),
    )
    assert job.wait_for_end() == "COMPLETED", job.printed()
    assert f"<longplay.launch.train><{name}>" in workspace.log(job)


def test_a_job_that_saved_is_requeued(workspace: Workspace) -> None:
    job = workspace.submit("save_once", RANKS_PER_NODE=1)
    workspace.wait_for_ranks(job, 2)
    workspace.cluster.call("scancel", "--signal=USR1", job.number)
    job.wait(lambda: "requeuing the job" in job.printed(), "requeue")
    assert job.wait_for_end() == "COMPLETED", job.printed()
    assert "start 2: ml1m" in job.printed()
    assert errors(job.printed()) == []


def test_the_signal_before_the_time_limit_reaches_every_rank(workspace: Workspace) -> None:
    job = workspace.submit("save_once")
    workspace.wait_for_ranks(job, 4)
    workspace.cluster.call("scancel", "--batch", "--signal=USR1", job.number)
    job.wait(lambda: "requeuing the job" in job.printed(), "requeue")
    assert job.wait_for_end() == "COMPLETED", job.printed()


def test_scancel_ends_a_job_without_a_requeue(workspace: Workspace) -> None:
    job = workspace.submit("save_once", RANKS_PER_NODE=1)
    workspace.wait_for_ranks(job, 2)
    workspace.cluster.call("scancel", job.number)
    assert job.wait_for_end() == "CANCELLED"
    assert job.printed().splitlines()[-1].startswith("longplay: stopped by Slurm; resumes when")
    assert "requeuing the job" not in job.printed()


def test_a_killed_rank_ends_the_job(workspace: Workspace) -> None:
    job = workspace.submit("save_once", RANKS_PER_NODE=1)
    workspace.wait_for_ranks(job, 2)
    os.kill(max(job.processes("/bin/bash", str(workspace.python))), signal.SIGKILL)
    assert job.wait_for_end() == "FAILED", job.printed()
    assert len(errors(job.printed())) == 1
    assert "training ended with exit code 137" in job.printed()


def test_the_jobs_output_shows_why_training_failed(workspace: Workspace) -> None:
    job = workspace.submit("fail")
    assert job.wait_for_end() == "FAILED"
    log = workspace.run / "logs" / f"{job.number}.log"
    assert errors(job.printed()) == [
        f"longplay: error: training ended with exit code 2: no such thing (log: {log})"
    ]


def test_a_job_is_not_requeued_beyond_the_limit(workspace: Workspace) -> None:
    job = workspace.submit("save_once", MAX_REQUEUES=0)
    workspace.wait_for_ranks(job, 4)
    workspace.cluster.call("scancel", "--signal=USR1", job.number)
    assert job.wait_for_end() == "FAILED"
    assert errors(job.printed()) == [
        "longplay: error: requeued 0 times, the limit MAX_REQUEUES; submit again to resume"
    ]


def test_a_missing_data_folder_is_a_one_line_error(workspace: Workspace) -> None:
    job = workspace.submit("end", DATA="no/such data")
    assert job.wait_for_end() == "FAILED"
    assert job.printed().splitlines() == [
        f"longplay: error: on node1, DATA {workspace.submit_folder}/no/such data: has no manifest.json; "
        "prepare a dataset with longplay prepare, or set DATA"
    ]


def test_a_run_folder_that_nodes_do_not_share_is_a_one_line_error(workspace: Workspace) -> None:
    run = workspace.cluster.root / "scratch" / workspace.run.name
    job = workspace.submit("end", RUN=run)
    assert job.wait_for_end() == "FAILED"
    assert job.printed().splitlines() == [
        f"longplay: error: on node2, RUN {run}: is not the same folder there; put it on a shared file system"
    ]


def test_a_missing_environment_is_a_one_line_error(workspace: Workspace) -> None:
    job = workspace.submit("end", PYTHON="/no/python")
    assert job.wait_for_end() == "FAILED"
    assert len(job.printed().splitlines()) == 1
    assert (
        "PYTHON /no/python: is not an executable there; run make install, or set VENV or PYTHON"
        in job.printed()
    )


def test_an_unknown_partition_is_rejected_at_submission(workspace: Workspace) -> None:
    workspace.submit_folder.mkdir()
    done = sbatch(
        workspace.cluster,
        workspace.submit_folder,
        "--partition=nope",
        str(workspace.home / "slurm" / "train_ml1m.sh"),
    )
    assert done.returncode != 0
    assert "invalid partition specified: nope" in done.stderr


def test_accounting_records_the_state_of_a_failed_job(workspace: Workspace) -> None:
    job = workspace.submit("fail")
    assert job.wait_for_end() == "FAILED"

    def recorded() -> bool:
        words = ("sacct", "--noheader", "--parsable2", "--allocations", "--format=State,ExitCode")
        return workspace.cluster.call(*words, "--jobs", job.number).strip() == "FAILED|2:0"

    job.wait(recorded, "record in sacct")


def test_a_dead_controller_is_a_one_line_error_and_leaves_no_process(workspace: Workspace) -> None:
    """Use a separate cluster, because the controller is killed."""
    root = workspace.cluster.root.parent / "headless"
    with LocalCluster(root, ClusterConfig(nodes=1, accounting=False), bound=True) as cluster:
        workspace.cluster = cluster
        script = workspace.home / "slurm" / "train_ml1m.sh"
        options = ("--nodes=1",)
        variables = workspace.variables("save_once")
        job = submit(cluster, workspace.submit_folder, script, options=options, variables=variables)
        workspace.wait_for_ranks(job, 1)
        processes = job.processes()
        cluster.daemons.kill("slurmctld")
        refused = sbatch(cluster, workspace.submit_folder, *options, str(script))
        assert "Unable to contact slurm controller" in refused.stderr
        rank = min(job.processes("/bin/bash", str(workspace.python)))
        os.kill(rank, signal.SIGUSR1)
        job.wait(lambda: "cannot be requeued" in job.printed(), "message about the requeue")
        assert len(errors(job.printed())) == 1
    assert processes
    assert job.processes() == []
