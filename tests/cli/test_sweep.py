"""`longplay sweep`: grids, the folder, and runs on this machine. tests/slurm covers runs on Slurm."""

import json
import os
import re
import signal
from pathlib import Path
from typing import Any

import pytest
from support.commands import Command, longplay
from support.json_edits import edit_json
from support.runs import small_dataset, small_settings

from longplay.launch.cli import main
from longplay.launch.evaluation.saved_evaluation import evaluation_file
from longplay.launch.settings import recipes
from longplay.launch.settings.errors import ConfigError
from longplay.launch.sweeps.arguments import parse_minutes
from longplay.launch.sweeps.cluster import outer_job_hidden
from longplay.launch.sweeps.folder import SweepFolder
from longplay.launch.sweeps.grid import GRIDS, SweepGrid, named_datasets
from longplay.launch.sweeps.job_log import last_error
from longplay.launch.sweeps.status import Progress, sweep_status

SMALL = ["--encoder.d_model", "16", "--encoder.headdim", "8", "--data.rows_per_step", "24"]
SMALL += ["--train.device", "cpu", "--train.log_every_steps", "1"]


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return small_dataset(tmp_path_factory.mktemp("sweep"))


@pytest.fixture
def small(monkeypatch: pytest.MonkeyPatch) -> None:
    recipes.RECIPES.register("small", small_settings)


def grid(data: Path, **settings: Any) -> SweepGrid:
    return SweepGrid(datasets=(("data", str(data)),), **settings)


# ---------------------------------------------------------------------- the grid


def test_the_study_is_the_product_of_lengths_models_and_seeds(data: Path) -> None:
    jobs = grid(data, context_lengths=(250, 500), seeds=(0, 1)).jobs()
    assert len(jobs) == len({job.name for job in jobs}) == 2 * 5 * 2
    assert jobs[0].name == "data-gru4rec-L250-s0"
    last = jobs[-1].config
    assert (last.encoder.model, last.context_length, last.seed) == ("moematrrec", 500, 1)


@pytest.mark.parametrize("name", [name for name, varied in GRIDS.items() if varied])
def test_an_ablation_varies_one_setting(name: str, data: Path) -> None:
    varied = GRIDS[name]
    assert varied is not None
    jobs = grid(data, grid=name, recipes=("sasrec",)).jobs()
    assert [job.variant for job in jobs] == list(varied[1])
    section, field = varied[0].split(".")
    values = [getattr(getattr(job.config, section), field) for job in jobs]
    assert [str(value).lower() for value in values] == list(varied[1])
    assert len({job.name for job in jobs}) == len(jobs)


def test_slots_per_step_is_the_same_at_every_length(data: Path) -> None:
    jobs = grid(data, recipes=("sasrec",), context_lengths=(250, 1000, 5000), slots_per_step=12_000).jobs()
    assert [job.config.data.rows_per_step for job in jobs] == [48, 12, 12]


@pytest.mark.parametrize("cluster", [["--dry-run"], ["--cluster", "local"]])
@pytest.mark.parametrize("huge", [["--context-lengths", "1000000000"], ["--encoder.d_model", "2147483646"]])
def test_a_run_beyond_any_memory_is_refused_before_anything_is_written(
    tmp_path: Path, data: Path, huge: list[str], cluster: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["sweep", "--data", str(data), "--models", "sasrec", "--out", str(tmp_path / "sweep")]
    assert main([*words, *cluster, *huge]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert re.search(r"data-sasrec-L\d+-s0: --(context_length|encoder\.d_model) \d+: needs at least", line)
    assert not (tmp_path / "sweep").exists()


@pytest.mark.parametrize("seeds", ["²", "9" * 5000, "1.5", "-1"])
def test_seeds_that_are_not_whole_numbers_are_refused(
    data: Path, seeds: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["sweep", "--data", str(data), f"--seeds={seeds}", "--dry-run"]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.endswith("is not a whole number of at most 19 digits")
    assert len(line) < 200


def test_overrides_reach_every_run(data: Path) -> None:
    jobs = grid(data, overrides=("--train.max_epochs", "5")).jobs()
    assert {job.config.train.max_epochs for job in jobs} == {5}


@pytest.mark.parametrize(
    ("overrides", "settings", "message"),
    [
        (("--seed", "1"), {}, "--seeds"),
        (("--context_length", "9"), {}, "--context-lengths"),
        (("--encoder.dropout", "0.1"), {"grid": "dropout"}, "--grid"),
        (("--data.rows_per_step", "12"), {"slots_per_step": 12}, "--slots-per-step"),
        (("--train.lrr", "1"), {}, "did you mean --train.lr"),
        ((), {"recipes": ("sasreck",)}, "did you mean sasrec"),
    ],
)
def test_settings_of_the_grid_and_unknown_names_are_refused(
    data: Path, overrides: tuple[str, ...], settings: dict[str, Any], message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        grid(data, overrides=overrides, **settings).jobs()


def test_two_datasets_never_share_a_name(data: Path, tmp_path: Path) -> None:
    assert named_datasets([str(data), f"ml={data}"]) == (("data", str(data)), ("ml", str(data)))
    other = tmp_path / "data"
    other.mkdir()
    (other / "manifest.json").write_text("{}")
    with pytest.raises(ConfigError, match="--data OTHER="):
        named_datasets([str(data), str(other)])
    with pytest.raises(ConfigError, match="longplay prepare"):
        named_datasets([str(tmp_path)])


@pytest.mark.parametrize(
    ("text", "minutes"),
    [("90", 90), ("90:30", 91), ("24:00:00", 1440), ("1-12", 2160), ("2-00:00:00", 2880), ("0:01:00", 1)],
)
def test_times_are_parsed_as_sbatch_parses_them(text: str, minutes: int) -> None:
    assert parse_minutes(text) == minutes


# ---------------------------------------------------------------------- the folder


def test_a_sweep_folder_reads_what_it_wrote(data: Path, tmp_path: Path) -> None:
    folder = SweepFolder(tmp_path / "sweep")
    folder.add(grid(data, recipes=("sasrec", "mambarec")).jobs())
    folder.write()
    assert SweepFolder(tmp_path / "sweep").jobs == folder.jobs


def test_a_command_in_sweep_json_is_not_run(
    data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = SweepFolder(tmp_path / "sweep")
    folder.add(grid(data).jobs())
    folder.write()
    text = folder.file.read_text()
    changed = json.loads(text.replace(str(data), f"pipe:touch {tmp_path / 'hacked'};"))
    edit_json(folder.file, jobs=changed["jobs"])
    for words in (["--dry-run"], ["--cluster", "debug"]):
        assert main(["sweep", "--out", str(folder.path), *words]) == 2
        assert "sweep.json: its dataset is the command" in capsys.readouterr().err
    assert not (tmp_path / "hacked").exists()


def test_a_larger_grid_adds_jobs_and_other_settings_are_refused(data: Path, tmp_path: Path) -> None:
    folder = SweepFolder(tmp_path / "sweep")
    folder.add(grid(data, recipes=("sasrec",)).jobs())
    folder.add(grid(data, recipes=("sasrec",), seeds=(0, 1), overrides=("--train.timeout_s", "9")).jobs())
    assert len(folder.jobs) == 2
    with pytest.raises(ConfigError, match=r"train\.lr: 0\.008 -> 0\.5; *|train\.lr"):
        folder.add(grid(data, recipes=("sasrec",), overrides=("--train.lr", "0.5")).jobs())
    with pytest.raises(ConfigError, match="was started on"):
        folder.add(SweepGrid(datasets=(("data", "/elsewhere"),), recipes=("sasrec",)).jobs())


def test_a_folder_without_a_sweep_must_be_empty(tmp_path: Path) -> None:
    (tmp_path / "mine").write_text("")
    with pytest.raises(ConfigError, match="neither empty nor a sweep folder"):
        SweepFolder(tmp_path)


def test_only_one_command_uses_a_sweep_folder(data: Path, tmp_path: Path) -> None:
    folder = SweepFolder(tmp_path / "sweep")
    with folder.locked():
        assert folder.holder() == os.getpid()
        with pytest.raises(ConfigError, match="another sweep command"), folder.locked():
            pass
    assert folder.holder() is None


def test_the_first_error_after_the_last_start_is_found(tmp_path: Path) -> None:
    log = tmp_path / "1_0_log.out"
    log.write_text(
        "longplay: job a, start 1, on node1\nlongplay: error: of start 1\n"
        "longplay: job a, start 2, on node1\nnoise\nValueError: first\nRuntimeError: second\n"
    )
    assert last_error([tmp_path / "none", log]) == "ValueError: first"


def test_progress_ignores_an_incomplete_line(data: Path, tmp_path: Path) -> None:
    (spec,) = grid(data, recipes=("sasrec",), overrides=("--train.max_steps", "50")).jobs()
    tags = {"train/epoch": 0.5, "perf/step_ms": 2000.0}
    lines = [json.dumps({"step": 10, "tag": tag, "value": value}) for tag, value in tags.items()]
    (tmp_path / "metrics.jsonl").write_text("\n".join([*lines, '{"step": 11, "ta']))
    at = Progress.read(tmp_path, spec)
    assert (at.step, at.total, at.seconds_left) == (10, 50, 80.0)
    (spec,) = grid(data, recipes=("sasrec",), overrides=("--train.max_minutes", "1")).jobs()
    assert Progress.read(tmp_path, spec).seconds_left == 40.0


def test_the_outer_job_is_hidden_but_slurm_conf_is_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in {"SLURM_CONF": "c", "SBATCH_ACCOUNT": "a", "SLURM_JOB_ID": "1", "RANK": "0"}.items():
        monkeypatch.setenv(name, value)
    with outer_job_hidden():
        kept = {n for n in os.environ if n.startswith(("SLURM", "SBATCH", "RANK"))}
    assert kept == {"SLURM_CONF", "SBATCH_ACCOUNT"}
    assert os.environ["SLURM_JOB_ID"] == "1"


# ---------------------------------------------------------------------- the command


def test_a_dry_run_prints_steps_and_memory_and_writes_nothing(
    data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "sweep"
    words = ["--data", str(data), "--out", str(out), "--context-lengths", "40,80", "--dry-run", *SMALL]
    assert main(["sweep", *words]) == 0
    printed = capsys.readouterr().out
    assert len([line for line in printed.splitlines() if " new " in line and "GiB" in line]) == 10
    assert not out.exists()


def test_status_and_cancel_need_a_sweep(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for what in ("--status", "--cancel"):
        assert main(["sweep", "--out", str(tmp_path), what]) == 2
        assert "holds no sweep" in capsys.readouterr().err


def test_a_missing_sbatch_is_reported_in_one_line(
    data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    words = ["--data", str(data), "--out", str(tmp_path / "sweep"), "--cluster", "slurm"]
    assert main(["sweep", *words]) == 2
    assert capsys.readouterr().err.startswith("longplay: error: --cluster slurm: no sbatch on this machine")


def test_the_debug_cluster_runs_each_job_once_in_one_process(small: None, data: Path, tmp_path: Path) -> None:
    out = tmp_path / "sweep"
    words = ["sweep", "--data", str(data), "--out", str(out), "--models", "small", "--context-lengths", "40"]
    words += ["--seeds", "0", "1", "--cluster", "debug", "--train.max_steps", "6"]
    assert "2 finished, 0 failed" in longplay(words, tmp_path / "log")
    folder = SweepFolder(out)
    assert [status.state for status in sweep_status(folder)] == ["finished", "finished"]
    for spec in folder.jobs.values():
        for split in ("validation", "test"):
            saved = json.loads(evaluation_file(spec.run_folder(out), split).read_text())
            assert saved["step"] == 6
            assert saved["split"] == split
            assert saved["peak_gib"] > 0
            assert "ndcg@10" in saved["full"]
    again = longplay(["sweep", "--out", str(out), "--cluster", "debug"], tmp_path / "log")
    assert "2 finished or in progress, none to submit" in again
    assert "2/2" not in again


def test_a_sweep_is_stopped_and_resumed_and_a_run_that_fails_does_not_keep_others_from_finishing(
    data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out, log = tmp_path / "sweep", tmp_path / "log"
    words = ["sweep", "--data", str(data), "--out", str(out), "--models", "gru4rec", "--seeds", "0", "1"]
    words += ["--context-lengths", "40", "--cluster", "local", "--train.max_steps", "100", *SMALL]
    finishing, failing = (out / "runs" / f"data-gru4rec-L40-s{seed}" for seed in (0, 1))
    failing.parent.mkdir(parents=True)
    failing.write_text("a file")
    sweep = {"version": 1, "created": "", "updated": "", "git_commit": None, "jobs": {}}
    (out / "sweep.json").write_text(json.dumps(sweep))
    metrics = finishing / "metrics.jsonl"

    first = Command(words, log)
    first.signal_when(signal.SIGTERM, lambda: metrics.exists() and metrics.stat().st_size > 2000)
    assert first.wait() != 0
    assert [status.state for status in sweep_status(SweepFolder(out))] == ["stopped", "new"]

    assert Command([*words, "--max-parallel", "2"], log).wait() == 1
    assert "resuming from" in SweepFolder(out).logs(finishing.name)[0].read_text()
    statuses = sweep_status(SweepFolder(out))
    assert [status.state for status in statuses] == ["finished", "failed"]
    assert statuses[1].error is not None
    assert statuses[1].error.endswith("is a file; give a folder")
    assert main(["sweep", "--out", str(out), "--status"]) == 0
    header, _, finished, failed, error, counts = capsys.readouterr().out.splitlines()
    assert header.split() == ["run", "state", "step", "metric", "node", "left"]
    assert failed.split()[:3] == [failing.name, "failed", "-"]
    assert finished.split()[:3] == [finishing.name, "finished", "100/100"]
    assert error == f"{failing.name}: {statuses[1].error}"
    assert counts == "2 runs: 1 finished, 1 failed"


def test_local_runs_of_several_ranks_at_once_meet_at_their_own_ports(data: Path, tmp_path: Path) -> None:
    out, log = tmp_path / "sweep", tmp_path / "log"
    words = ["sweep", "--data", str(data), "--out", str(out), "--models", "gru4rec", "--seeds", "0", "1"]
    words += ["--context-lengths", "40", "--cluster", "local", "--max-parallel", "2"]
    words += ["--ranks-per-node", "2", "--train.max_steps", "3", *SMALL]
    assert "finished all 2 runs" in longplay(words, log)
