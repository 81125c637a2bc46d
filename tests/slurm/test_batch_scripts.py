"""Batch scripts with a stand-in for the training: arguments, ranks, signals and error messages."""

import os
import signal
from pathlib import Path

import pytest
from local_cluster import ClusterConfig, LocalCluster
from support.slurm_jobs import REPOSITORY, Job, sbatch, submit

# Replaces `python -m longplay.launch.train RECIPE ...`; MODE selects what it does.
STAND_IN = """#!/bin/bash
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


class Scene:
    """A checkout and folders whose names have spaces, and a stand-in for Python."""

    def __init__(self, cluster: LocalCluster, folder: Path) -> None:
        self.cluster = cluster
        self.home = folder / "my checkout"
        self.home.symlink_to(REPOSITORY)
        self.elsewhere = folder / "some where"
        self.data = folder / "my data"
        self.data.mkdir()
        (self.data / "manifest.json").write_text("{}")
        self.run = folder / "my run"
        # proctrack/linuxproc, which forwards signals, cannot parse /proc/PID/stat of a name with spaces.
        self.python = folder / "stand_in"
        self.python.write_text(STAND_IN)
        self.python.chmod(0o755)

    def variables(self, mode: str) -> dict[str, object]:
        return {"DATA": self.data, "RUN": self.run, "PYTHON": self.python, "MODE": mode}

    def submit(self, mode: str, *words: str, name: str = "ml1m", **variables: object) -> Job:
        script = self.home / "slurm" / f"train_{name}.sh"
        return submit(
            self.cluster, self.elsewhere, script, *words, variables={**self.variables(mode), **variables}
        )

    def log(self, job: Job) -> str:
        return (self.run / "logs" / f"{job.number}.log").read_text()

    def wait_for_ranks(self, job: Job, number: int) -> None:
        job.wait(lambda: len(list((self.run / "logs").glob("rank*"))) == number, "ranks")
        for path in (self.run / "logs").glob("rank*"):
            path.unlink()


@pytest.fixture
def scene(slurm_cluster: LocalCluster, tmp_path: Path) -> Scene:
    return Scene(slurm_cluster, tmp_path)


def errors(text: str) -> list[str]:
    """Return the lines about errors, without those of slurmstepd about a requeued or cancelled job."""
    lines = [line for line in text.splitlines() if not line.startswith("slurmstepd")]
    return [line for line in lines if "error" in line.lower()]


def test_every_gpu_has_a_rank_with_the_arguments_as_given(scene: Scene) -> None:
    job = scene.submit("end", "--train.lr", "0.001", "--evaluation.cutoffs", "5, 10")
    assert job.wait_for_end() == "COMPLETED", job.printed()
    ranks = sorted(line for line in scene.log(job).splitlines() if line.startswith("rank "))
    words = ["-m", "longplay.launch.train", "ml1m", "--data", str(scene.data), "--run", str(scene.run)]
    words += ["--train.lr", "0.001", "--evaluation.cutoffs", "5, 10"]
    expected = "".join(f"<{word}>" for word in words)
    assert ranks == [f"rank {n} of 4 on node{1 + n // 2}: {expected}" for n in range(4)]
    assert job.printed().splitlines()[-1] == f"longplay: finished: {scene.run}"


@pytest.mark.parametrize("name", ["lfm5k", "kuairand5k"])
def test_each_script_trains_its_recipe(scene: Scene, name: str) -> None:
    script = scene.home / "slurm" / f"train_{name}.sh"
    job = submit(
        scene.cluster, scene.elsewhere, script, options=("--nodes=1",), variables=scene.variables("end")
    )
    assert job.wait_for_end() == "COMPLETED", job.printed()
    assert f"<longplay.launch.train><{name}>" in scene.log(job)


def test_a_training_that_saved_is_requeued(scene: Scene) -> None:
    job = scene.submit("save_once", RANKS_PER_NODE=1)
    scene.wait_for_ranks(job, 2)
    scene.cluster.call("scancel", "--signal=USR1", job.number)
    job.wait(lambda: "back into the queue" in job.printed(), "requeue")
    assert job.wait_for_end() == "COMPLETED", job.printed()
    assert "start 2: ml1m" in job.printed()
    assert errors(job.printed()) == []


def test_the_signal_before_the_time_limit_reaches_every_rank(scene: Scene) -> None:
    job = scene.submit("save_once")
    scene.wait_for_ranks(job, 4)
    scene.cluster.call("scancel", "--batch", "--signal=USR1", job.number)
    job.wait(lambda: "back into the queue" in job.printed(), "requeue")
    assert job.wait_for_end() == "COMPLETED", job.printed()


def test_scancel_ends_a_job_for_good(scene: Scene) -> None:
    job = scene.submit("save_once", RANKS_PER_NODE=1)
    scene.wait_for_ranks(job, 2)
    scene.cluster.call("scancel", job.number)
    assert job.wait_for_end() == "CANCELLED"
    assert job.printed().splitlines()[-1] == "longplay: stopped by Slurm; submit again to resume"
    assert "back into the queue" not in job.printed()


def test_a_rank_that_is_killed_ends_the_job(scene: Scene) -> None:
    job = scene.submit("save_once", RANKS_PER_NODE=1)
    scene.wait_for_ranks(job, 2)
    os.kill(max(job.processes("/bin/bash", str(scene.python))), signal.SIGKILL)
    assert job.wait_for_end() == "FAILED", job.printed()
    assert len(errors(job.printed())) == 1
    assert "training ended with exit code 137" in job.printed()


def test_the_jobs_output_shows_why_training_failed(scene: Scene) -> None:
    job = scene.submit("fail")
    assert job.wait_for_end() == "FAILED"
    log = scene.run / "logs" / f"{job.number}.log"
    assert errors(job.printed()) == [
        f"longplay: error: training ended with exit code 2: no such thing (log: {log})"
    ]


def test_a_job_is_not_requeued_beyond_the_limit(scene: Scene) -> None:
    job = scene.submit("save_once", MAX_REQUEUES=0)
    scene.wait_for_ranks(job, 4)
    scene.cluster.call("scancel", "--signal=USR1", job.number)
    assert job.wait_for_end() == "FAILED"
    assert errors(job.printed()) == [
        "longplay: error: requeued 0 times, the limit MAX_REQUEUES; submit again to resume"
    ]


def test_a_missing_data_folder_is_one_line(scene: Scene) -> None:
    job = scene.submit("end", DATA="no/such data")
    assert job.wait_for_end() == "FAILED"
    assert job.printed().splitlines() == [
        f"longplay: error: on node1, DATA {scene.elsewhere}/no/such data: has no manifest.json; "
        "prepare a dataset with longplay prepare, or set DATA"
    ]


def test_a_run_folder_that_nodes_do_not_share_is_one_line(scene: Scene) -> None:
    run = scene.cluster.root / "scratch" / scene.run.name
    job = scene.submit("end", RUN=run)
    assert job.wait_for_end() == "FAILED"
    assert job.printed().splitlines() == [
        f"longplay: error: on node2, RUN {run}: is another folder there; put it on a shared file system"
    ]


def test_a_missing_environment_is_one_line(scene: Scene) -> None:
    job = scene.submit("end", PYTHON="/no/python")
    assert job.wait_for_end() == "FAILED"
    assert len(job.printed().splitlines()) == 1
    assert (
        "PYTHON /no/python: is not a program there; run make install, or set VENV or PYTHON" in job.printed()
    )


def test_a_missing_partition_is_refused_at_once(scene: Scene) -> None:
    scene.elsewhere.mkdir()
    done = sbatch(
        scene.cluster, scene.elsewhere, "--partition=nope", str(scene.home / "slurm" / "train_ml1m.sh")
    )
    assert done.returncode != 0
    assert "invalid partition specified: nope" in done.stderr


def test_accounting_records_how_a_job_ended(scene: Scene) -> None:
    job = scene.submit("fail")
    assert job.wait_for_end() == "FAILED"

    def recorded() -> bool:
        words = ("sacct", "--noheader", "--parsable2", "--allocations", "--format=State,ExitCode")
        return scene.cluster.call(*words, "--jobs", job.number).strip() == "FAILED|2:0"

    job.wait(recorded, "record in sacct")


def test_a_dead_controller_is_one_line_and_leaves_no_process(scene: Scene) -> None:
    """Uses a cluster of its own, because the controller is killed."""
    root = scene.cluster.root.parent / "headless"
    with LocalCluster(root, ClusterConfig(nodes=1, accounting=False), bound=True) as cluster:
        scene.cluster = cluster
        script = scene.home / "slurm" / "train_ml1m.sh"
        options = ("--nodes=1",)
        variables = scene.variables("save_once")
        job = submit(cluster, scene.elsewhere, script, options=options, variables=variables)
        scene.wait_for_ranks(job, 1)
        processes = job.processes()
        cluster.kill("slurmctld")
        refused = sbatch(cluster, scene.elsewhere, *options, str(script))
        assert "Unable to contact slurm controller" in refused.stderr
        stand_in = min(job.processes("/bin/bash", str(scene.python)))
        os.kill(stand_in, signal.SIGUSR1)
        job.wait(lambda: "cannot be requeued" in job.printed(), "message about the requeue")
        assert len(errors(job.printed())) == 1
    assert processes
    assert job.processes() == []
