"""`longplay report` on runs that are missing, unfinished or failed, and on folders without runs."""

from pathlib import Path

import pytest
from support.made_up_sweeps import MadeUpSweep, made_up_run
from support.reports import report, rows_of

from longplay.launch.cli import main
from longplay.launch.reports.data import collect


def test_missing_failed_and_unfinished_runs_are_shown(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    made = MadeUpSweep(tmp_path / "study")
    made_up_run(made.add(seed=0), seed=0)
    made_up_run(made.add(seed=1, job_id="7"), seed=1, hit10=None)
    made.add(seed=2)
    made.add(seed=3, job_id="9_1")
    made.add(model="gru4rec", job_id="9_2")
    logs = made.path / "submitit"
    old = "longplay: job m, start 1, on n\nlongplay: error: from before\nlongplay: job m, start 2, on n\n"
    (logs / "9_2_0_log.out").write_text(old + "x\nlongplay: error on rank 0: no | space <left>\nlater\n")
    (logs / "7_0_log.out").write_text(old)
    made.write()

    out = report(made.path, out=tmp_path / "out")
    printed = capsys.readouterr().out
    assert "5 runs: 1 finished, 1 unfinished, 2 missing, 1 failed" in printed
    assert "m-gru4rec-L50-s0: on rank 0: no | space <left>" in printed
    states = {row["run"]: (row["state"], row["error"], row["progress"]) for row in rows_of(out / "runs.csv")}
    assert states == {
        "m-sasrec-L50-s0": ("finished", "", ""),
        "m-sasrec-L50-s1": (
            "unfinished",
            "",
            "step 30, epoch 3 of at most 20, not evaluated; last line: m, start 2, on n",
        ),
        "m-sasrec-L50-s2": ("missing", "", "not submitted"),
        "m-sasrec-L50-s3": ("missing", "", "submitted as 9_1"),
        "m-gru4rec-L50-s0": ("failed", "on rank 0: no | space <left>", ""),
    }
    page = (out / "report.md").read_text()
    assert "| 50 | GRU4Rec | – | – | – | – | 0 of 1 (1 failed) |" in page
    assert "| 50 | SASRec | 0.1000 | 0.0500 | 0.2000 | 0.1000 | 1 of 4 (1 unfinished, 2 missing) |" in page
    assert r"| m-gru4rec-L50-s0 | **failed** | on rank 0: no \| space \<left> |" in page
    assert "no | space &lt;left&gt;" in (out / "report.html").read_text()


def test_a_killed_task_shows_slurms_message_from_the_log_of_its_own_job(tmp_path: Path) -> None:
    made = MadeUpSweep(tmp_path / "study")
    made_up_run(made.add(job_id="5"), hit10=None)
    made.write()
    start = "longplay: job m-sasrec-L50-s0, start 1, on n\n"
    (made.path / "submitit" / "5_1_0_log.out").write_text(start + "longplay: error: of another job\n")
    (made.path / "submitit" / "5_0_log.out").write_text(start + "srun: error: n: task 0: Killed\nsrun: end\n")
    run = collect([made.path]).row(0, named=True)
    assert (run["state"], run["error"]) == ("failed", "srun: error: n: task 0: Killed")


def test_a_sweep_whose_runs_have_not_started_is_reported(tmp_path: Path) -> None:
    made = MadeUpSweep(tmp_path / "study")
    made.add()
    made.write()
    assert main(["report", str(made.path)]) == 0
    page = (made.path / "report" / "report.md").read_text()
    assert "1 run: 1 missing." in page
    assert "| 50 | SASRec | – | – | – | – | 0 of 1 (1 missing) |" in page
    assert list((made.path / "report" / "plots").iterdir()) == []


def test_a_run_with_a_damaged_evaluation_has_failed(tmp_path: Path) -> None:
    made_up_run(tmp_path / "run")
    file = tmp_path / "run" / "evaluation" / "test.json"
    file.write_text(file.read_text()[:40])
    run = collect([tmp_path / "run"]).row(0, named=True)
    assert run["state"] == "failed"
    assert run["error"].startswith("evaluation/test.json: cannot be read")


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda path: None, "is not a sweep (no sweep.json) and not a run folder"),
        (lambda path: (path / "sweep.json").write_text("{"), "sweep.json: cannot be read"),
        (
            lambda path: (path / "sweep.json").write_text(
                '{"version": 1, "created": "", "jobs": {"x": {"run": "r"}}}'
            ),
            "sweep.json: is damaged (jobs.x.",
        ),
        (
            lambda path: (path / "sweep.json").write_text('{"version": 1, "created": "", "jobs": {}}'),
            ": no runs; start some",
        ),
        (lambda path: (path / "config.json").write_text("{}"), "config.json: is damaged"),
    ],
)
def test_a_folder_without_runs_is_refused_in_one_line(
    make, message: str, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    make(tmp_path)
    assert main(["report", str(tmp_path)]) == 2
    printed = capsys.readouterr().err
    assert printed.startswith("longplay: error: ")
    assert message in printed
    assert printed.count("\n") == 1
