"""`longplay sweep` on a real Slurm cluster: one job array, interruptions, repeated commands, and errors."""

import json
import re
import signal
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from local_cluster import LocalCluster
from support.commands import longplay
from support.runs import read_metrics, small_dataset, steps_logged
from support.slurm_jobs import Job, signal_all

from longplay.launch.cli import main
from longplay.launch.evaluation.saved_evaluation import evaluation_file
from longplay.launch.sweeps.folder import SweepFolder
from longplay.launch.sweeps.status import JobStatus, sweep_status

SMALL = ["--encoder.d_model", "16", "--encoder.headdim", "8", "--encoder.d_state", "8"]
SMALL += ["--data.rows_per_step", "24", "--train.device", "cpu", "--train.log_every_steps", "1"]


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return small_dataset(tmp_path_factory.mktemp("sweep"))


@pytest.fixture
def cluster(slurm_cluster: LocalCluster, monkeypatch: pytest.MonkeyPatch) -> LocalCluster:
    for name in ("SLURM_CONF", "PATH"):
        monkeypatch.setenv(name, slurm_cluster.env[name])
    return slurm_cluster


Sweep = Callable[..., tuple[int, str]]


@pytest.fixture
def sweep(cluster: LocalCluster, capsys: pytest.CaptureFixture[str]) -> Sweep:
    """Run `longplay sweep` in this process; return its exit code and output."""

    def run(*words: object) -> tuple[int, str]:
        code = main(["sweep", *map(str, words)])
        captured = capsys.readouterr()
        return code, captured.out + captured.err

    return run


def statuses(out: Path) -> dict[str, JobStatus]:
    return {status.spec.name: status for status in sweep_status(SweepFolder(out))}


def job_of(cluster: LocalCluster, out: Path, name: str) -> Job:
    folder = SweepFolder(out)
    number = folder.submissions[name].job_id
    return Job(cluster, number, folder.submitit / f"{number}_0_log.out")


def wait_for_end(out: Path) -> dict[str, JobStatus]:
    """Wait until no job is live and return the statuses."""
    deadline = time.monotonic() + 240
    while any(status.live for status in statuses(out).values()):
        assert time.monotonic() < deadline, statuses(out)
        time.sleep(1)
    return statuses(out)


def wait_for_requeue(job: Job) -> None:
    """Wait until the job is pending again, and make it eligible in two seconds.

    By default Slurm waits longer. A node rejects a job that starts twice within one second.
    """
    job.wait_for("PENDING")
    job.update(StartTime="now+2")


def ranks_of(job: Job) -> list[int]:
    """Return the pids of a job's ranks. Slurm gives each task of an array its own job id."""
    text = job.cluster.call("scontrol", "show", "job", job.number)
    number = re.findall(r"JobId=(\d+)", text)[0]
    return Job(job.cluster, number, job.output).processes("submitit.core._submit")


@pytest.mark.slow
def test_a_sweep_is_one_array_and_repeating_it_finishes_canceled_and_killed_jobs(
    cluster: LocalCluster, data: Path, tmp_path: Path, sweep: Sweep
) -> None:
    out = tmp_path / "my sweep"
    words = ["--data", data, "--out", out, "--context-lengths", 10, 20, 40, "--cluster", "slurm"]
    words += ["--time", 10, "--models", "gru4rec", "--max-parallel", 2, "--train.max_steps", 30, *SMALL]
    code, printed = sweep(*words)
    assert code == 0
    assert "3 runs, 3 to submit" in printed
    before = SweepFolder(out)
    assert list(before.jobs) == [f"data-gru4rec-L{length}-s0" for length in (10, 20, 40)]
    array = {submission.job_id.partition("_")[0] for submission in before.submissions.values()}
    assert len(array) == 1

    canceled, killed = "data-gru4rec-L40-s0", "data-gru4rec-L10-s0"
    cluster.call("scancel", before.submissions[canceled].job_id)
    victim = job_of(cluster, out, killed)
    victim.wait(lambda: (out / "runs" / killed / "metrics.jsonl").exists(), "first step")
    signal_all(ranks_of(victim), signal.SIGKILL)
    code, printed = sweep(*words, "--context-lengths", 20)
    assert "1 runs, 1 finished or in progress, none to submit" in printed
    found = wait_for_end(out)
    assert {name for name, status in found.items() if status.state != "finished"} == {canceled, killed}
    assert (found[canceled].state, found[killed].state) == ("canceled", "failed")
    assert str(found[killed].error).startswith("ended as FAILED")

    code, printed = sweep(*words, "--wait")
    assert code == 0, printed
    after = SweepFolder(out)
    again = {name for name in after.jobs if after.submissions[name] != before.submissions[name]}
    assert again == {canceled, killed}
    assert "finished all 3 runs" in printed
    for spec in after.jobs.values():
        saved = json.loads(evaluation_file(spec.run_folder(out), "test").read_text())
        assert (saved["split"], saved["ranks"]) == ("test", 1)
        assert max(read_metrics(spec.run_folder(out), "train/loss")) == 30

    code, printed = sweep(*words)
    assert code == 0
    assert "3 finished or in progress, none to submit" in printed
    assert SweepFolder(out).submissions == after.submissions


@pytest.mark.slow
def test_time_limit_and_preemption_do_not_change_the_losses_of_a_job(
    cluster: LocalCluster, data: Path, tmp_path: Path, sweep: Sweep
) -> None:
    out, name = tmp_path / "sweep", "data-gru4rec-L40-s0"
    words = ["--data", data, "--out", out, "--models", "gru4rec", "--context-lengths", 40, "--time", 10]
    words += ["--nodes", 2, "--partition", "main", "--train.max_steps", 300, *SMALL]
    assert sweep(*words)[0] == 0
    job, run = job_of(cluster, out, name), out / "runs" / name

    job.wait(lambda: steps_logged(run) >= 5, "step 5")
    cluster.call("scancel", "--signal=USR1", job.number)  # as Slurm does before the time limit
    wait_for_requeue(job)
    began = steps_logged(run)
    job.wait(lambda: steps_logged(run) >= began + 5, "steps after the first start")
    cluster.call(
        "sbatch", "--partition=high", "--nodes=2", "--exclusive", f"--chdir={tmp_path}", "--wrap=true"
    )
    wait_for_requeue(job)
    assert job.wait_for_end() == "COMPLETED"
    assert statuses(out)[name].state == "finished"
    assert [line for line in job.printed().splitlines() if "start 3" in line]
    assert job.printed().count("resuming from") == 2

    alone = tmp_path / "alone"
    train = ["train", "gru4rec", "--data", str(data), "--run", str(alone), "--context_length", "40"]
    longplay([*train, "--seed", "0", "--train.max_steps", "300", *SMALL], tmp_path / "log")
    expected = read_metrics(alone, "train/loss")
    assert read_metrics(run, "train/loss") == pytest.approx(expected, rel=1e-3)


def test_cancel_ends_all_jobs_of_a_sweep(
    cluster: LocalCluster, data: Path, tmp_path: Path, sweep: Sweep
) -> None:
    out = tmp_path / "sweep"
    words = ["--data", data, "--out", out, "--models", "gru4rec", "sasrec", "--context-lengths", 40, *SMALL]
    assert sweep(*words, "--max-parallel", 1)[0] == 0
    job = job_of(cluster, out, "data-gru4rec-L40-s0")
    job.wait(lambda: statuses(out)["data-gru4rec-L40-s0"].state == "running", "start")
    assert statuses(out)["data-gru4rec-L40-s0"].node.startswith("node")
    code, printed = sweep("--out", out, "--cancel")
    assert code == 0
    assert "canceled 2 jobs" in printed
    job.wait(lambda: not any(status.live for status in statuses(out).values()), "end")
    code, printed = sweep("--out", out, "--status")
    assert "2 runs: 2 canceled" in printed


def test_a_folder_that_nodes_do_not_share_is_reported(
    cluster: LocalCluster, data: Path, sweep: Sweep
) -> None:
    out = cluster.root / "scratch" / "sweep"  # each node has its own scratch
    words = ["--data", data, "--out", out, "--models", "gru4rec", "--context-lengths", 40, "--wait", *SMALL]
    code, printed = sweep(*words)
    assert code == 1
    assert re.search(
        r"no log: .*/scratch/sweep may not be on a file system that the node node\d shares", printed
    )


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--partition", "gpu"], "--partition gpu: Invalid partition name specified; available: high, main"),
        (["--constraint", "tpu"], "sbatch rejected the jobs: Invalid feature specification"),
        (["--models", "sasreck"], "recipe 'sasreck': unknown; did you mean sasrec?"),
    ],
)
def test_a_rejected_sweep_prints_one_line_and_submits_no_job(
    words: list[str], message: str, cluster: LocalCluster, data: Path, tmp_path: Path, sweep: Sweep
) -> None:
    before = cluster.call("squeue", "--noheader", "--states=all", "--format=%i")
    code, printed = sweep("--data", data, "--out", tmp_path / "sweep", *words)
    errors = [line for line in printed.splitlines() if "error" in line]
    assert code == 2
    assert len(errors) == 1
    assert message in errors[0]
    assert cluster.call("squeue", "--noheader", "--states=all", "--format=%i") == before


def test_a_dead_controller_is_a_one_line_error(
    cluster: LocalCluster, data: Path, tmp_path: Path, sweep: Sweep, monkeypatch: pytest.MonkeyPatch
) -> None:
    conf = tmp_path / "slurm.conf"
    conf.write_text(re.sub(r"SlurmctldPort=\d+", "SlurmctldPort=1", cluster.conf.read_text()))
    monkeypatch.setenv("SLURM_CONF", str(conf))
    code, printed = sweep("--data", data, "--out", tmp_path / "sweep")
    assert code == 2
    assert printed.startswith("longplay: error: Slurm's controller does not respond")
    assert len(printed.splitlines()) == 1
