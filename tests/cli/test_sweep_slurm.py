"""`longplay sweep` on Slurm clusters with other limits and defaults, through fake commands."""

import os
from collections.abc import Callable
from datetime import datetime
from pathlib import Path

import pytest
from support.fake_slurm import FakeSlurm
from support.runs import small_dataset

from longplay.launch.cli import main
from longplay.launch.sweeps.cluster import Submission
from longplay.launch.sweeps.folder import SweepFolder


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return small_dataset(tmp_path_factory.mktemp("sweep"))


@pytest.fixture
def slurm(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> FakeSlurm:
    fake = FakeSlurm(tmp_path / "slurm")
    monkeypatch.setenv("PATH", f"{fake.bin}:{os.environ['PATH']}")
    return fake


Sweep = Callable[..., tuple[int, str]]


@pytest.fixture
def sweep(data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> Sweep:
    """Run `longplay sweep` with this number of seeds; return its exit code and output."""

    def run(seeds: int, *words: object) -> tuple[int, str]:
        grid = ["--data", data, "--models", "gru4rec", "--context-lengths", 40, "--seeds", *range(seeds)]
        code = main(["sweep", *map(str, [*(grid if seeds else []), "--out", tmp_path / "s", *words])])
        captured = capsys.readouterr()
        return code, captured.out + captured.err

    return run


def arrays(slurm: FakeSlurm) -> list[str]:
    return [slurm.options(number)["array"] for number in range(1, int(slurm.read("last")) + 1)]


# ---------------------------------------------------------------------- submission


@pytest.mark.parametrize(
    ("jobs", "words", "array"),
    [(300, (), "0-299%300"), (9, ("--max-parallel", 7), "0-8%7")],  # submitit's own limit is 256
)
def test_all_jobs_may_run_at_once_unless_max_parallel_is_given(
    slurm: FakeSlurm, sweep: Sweep, jobs: int, words: tuple[object, ...], array: str
) -> None:
    assert sweep(jobs, "--cluster", "slurm", *words)[0] == 0
    assert arrays(slurm) == [array]


def test_the_batch_script_has_only_the_options_that_the_sweep_sets(slurm: FakeSlurm, sweep: Sweep) -> None:
    assert sweep(2, "--cluster", "slurm")[0] == 0
    options = slurm.options(1)
    assert options.pop("output").endswith("%A_%a_0_log.out")
    assert options.pop("job-name").startswith("longplay-s")
    assert options == {
        "array": "0-1%2",
        "nodes": "1",
        "ntasks-per-node": "1",
        "open-mode": "append",
        "requeue": "",
        "signal": "USR1@120",
        "time": "1440",
    }


def test_given_options_reach_sbatch_and_hide_its_variables(
    slurm: FakeSlurm, sweep: Sweep, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("PARTITION", "QOS", "WCKEY", "JOB_NAME", "ARRAY_INX", "TIMELIMIT", "MEM_PER_CPU", "GRES"):
        monkeypatch.setenv(f"SBATCH_{name}", "outer")
    words = ["--partition", "gpu", "--mem", "64G", "--gpus-per-node", 4, "--cpus-per-task", 3]
    assert sweep(2, *words)[0] == 0
    options = slurm.options(1)
    given = ("partition", "mem", "gpus-per-node", "cpus-per-task", "ntasks-per-node")
    assert [options[name] for name in given] == ["gpu", "64G", "4", "3", "4"]
    kept = [line for line in slurm.read("1.env").splitlines() if line.startswith("SBATCH_")]
    assert sorted(kept) == ["SBATCH_QOS=outer", "SBATCH_WCKEY=outer"]


@pytest.mark.parametrize(
    ("config", "jobs", "expected"),
    [
        ("", 1010, ["0-1000%1001", "0-8%9"]),
        ("ClusterName = c\nMaxArraySize            = 6\n", 11, ["0-5%6", "0-4%5"]),
        ("MaxArraySize = 9999\nSchedulerParameters = a=3,max_array_tasks=10\n", 12, ["0-9%10", "0-1%2"]),
        ("MaxArraySize            = 50\n", 11, ["0-10%11"]),
    ],
)
def test_more_jobs_than_an_array_may_have_are_several_arrays(
    slurm: FakeSlurm, sweep: Sweep, tmp_path: Path, config: str, jobs: int, expected: list[str]
) -> None:
    slurm.write("config", config)
    code, printed = sweep(jobs)
    assert code == 0
    assert arrays(slurm) == expected
    submissions = SweepFolder(tmp_path / "s").submissions
    assert len({each.job_id for each in submissions.values()}) == jobs
    assert f"scancel {' '.join(str(1 + number) for number in range(len(arrays(slurm))))}\n" in printed


def test_max_parallel_holds_for_several_arrays(slurm: FakeSlurm, sweep: Sweep) -> None:
    slurm.write("config", "MaxArraySize = 3\n")
    assert sweep(8, "--max-parallel", 2)[0] == 0
    assert arrays(slurm) == ["0-2%2", "0-2%2", "0-1%2"]
    after = [slurm.options(number).get("dependency") for number in (1, 2, 3)]
    assert after == [None, "afterany:1", "afterany:2"]


def test_arrays_before_a_rejected_one_are_recorded(slurm: FakeSlurm, sweep: Sweep, tmp_path: Path) -> None:
    slurm.write("config", "MaxArraySize = 4\n")
    slurm.write("refused", "2")
    slurm.write("reason", "Job violates accounting/QOS policy")
    code, printed = sweep(10)
    assert code == 2
    assert "Job violates accounting/QOS policy; submitted 4 of 10 jobs, repeat the command for the" in printed
    assert len(SweepFolder(tmp_path / "s").submissions) == 4


# ---------------------------------------------------------------------- whose job it is


def listed(submission: Submission, **changes: object) -> str:
    """Return squeue's line for a running job, as submitted except for the changes."""
    submitted = datetime.fromtimestamp(submission.time).isoformat(timespec="seconds")
    job = {"uid": submission.uid, "submitted": submitted, "name": submission.name, **changes}
    return f"{submission.job_id}|RUNNING|n9|None|{job['uid']}|{job['submitted']}|{job['name']}\n"


@pytest.mark.parametrize(
    "changes",
    [
        {"name": "longplay-s"},
        {"name": ""},
        {"uid": os.getuid() + 1},
        {"submitted": "2020-02-29T12:00:00"},
    ],
)
def test_a_job_that_reuses_a_number_is_not_the_sweeps(
    slurm: FakeSlurm, sweep: Sweep, tmp_path: Path, changes: dict[str, object]
) -> None:
    assert sweep(2)[0] == 0
    submissions = SweepFolder(tmp_path / "s").submissions.values()
    slurm.write("queue", "".join(listed(each, **changes) for each in submissions))
    assert "2 runs: 2 lost" in sweep(0, "--status")[1]
    assert "canceled 0 jobs" in sweep(0, "--cancel")[1]
    assert slurm.read("canceled") == ""
    assert "2 runs, 2 to submit" in sweep(0)[1]


def test_a_line_without_the_name_is_not_the_sweeps(slurm: FakeSlurm, sweep: Sweep) -> None:
    assert sweep(1)[0] == 0
    slurm.write("queue", "1|RUNNING|n9|None\n")
    assert "1 runs: 1 lost" in sweep(0, "--status")[1]


def test_jobs_of_another_cluster_are_not_canceled(slurm: FakeSlurm, sweep: Sweep, tmp_path: Path) -> None:
    slurm.write("config", "ClusterName             = east\n")
    assert sweep(2)[0] == 0
    submissions = SweepFolder(tmp_path / "s").submissions.values()
    slurm.write("queue", "".join(map(listed, submissions)))
    assert "2 runs: 2 running" in sweep(0, "--status")[1]
    slurm.write("config", "ClusterName             = west\n")
    assert "job 1_0 was submitted on cluster east; this is west" in sweep(0, "--status")[1]
    assert "canceled 0 jobs" in sweep(0, "--cancel")[1]
    assert slurm.read("canceled") == ""


def test_the_sweeps_own_jobs_are_canceled_after_a_requeue_too(
    slurm: FakeSlurm, sweep: Sweep, tmp_path: Path
) -> None:
    assert sweep(2)[0] == 0
    submissions = SweepFolder(tmp_path / "s").submissions.values()
    slurm.write("queue", "".join(listed(each, submitted="2999-01-01T00:00:00") for each in submissions))
    assert "canceled 2 jobs" in sweep(0, "--cancel")[1]
    assert slurm.read("canceled").split() == ["1_0", "1_1"]


def test_accounting_of_another_job_is_not_the_sweeps(slurm: FakeSlurm, sweep: Sweep, tmp_path: Path) -> None:
    assert sweep(2)[0] == 0
    name = SweepFolder(tmp_path / "s").submissions["data-gru4rec-L40-s0"].name
    rows = ["JobID|State|NodeList|UID|Submit|JobName"]
    for job_id, its_name in (("1_0", name), ("1_1", "other")):
        rows.append(f"{job_id}|OUT_OF_MEMORY|n9|{os.getuid()}|Unknown|{its_name}")
    slurm.write("accounting", "\n".join(rows))
    assert "2 runs: 1 out of memory, 1 lost" in sweep(0, "--status")[1]
