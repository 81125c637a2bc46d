"""`longplay evaluate`: warnings about its metrics, and the file that `longplay report` reads."""

import json
import shutil
from pathlib import Path

import pytest
from support.commands import longplay
from support.json_edits import edit_json
from support.runs import small_dataset

from longplay.launch.cli import main


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("run")
    data = small_dataset(folder)
    train(data, folder / "run", folder / "log")
    return folder / "run"


def train(data: Path, run: Path, log: Path, *overrides: str) -> str:
    words = ["train", "small", "--data", str(data), "--run", str(run), "--train.max_epochs", "1"]
    return longplay([*words, *overrides], log)


@pytest.fixture(scope="module")
def three_items(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A dataset of three items, of which half of the eight users have seen only two before the last event."""
    folder = tmp_path_factory.mktemp("three")
    lines = ["user_id,item_id,timestamp"]
    for user in range(8):
        lines += [f"{user},{time % (3 if user % 2 else 2)},{time}" for time in range(6)]
    (folder / "events.csv").write_text("\n".join(lines) + "\n")
    longplay(["prepare", "csv", str(folder / "events.csv"), "--out", str(folder / "data")], folder / "log")
    return folder / "data"


SMALL = ["--data.num_lanes", "1", "--data.rows_per_step", "4"]


@pytest.mark.parametrize("ranks", [1, 2])
def test_users_with_few_unseen_items_are_counted(three_items: Path, tmp_path: Path, ranks: int) -> None:
    train(three_items, tmp_path / "run", tmp_path / "log", *SMALL)
    words = ["evaluate", str(tmp_path / "run"), "--json"]
    warning, report = longplay(words, tmp_path / "log", world_size=ranks).splitlines()
    assert "warning: 8 of 8 users have fewer than 100 unseen items" in warning
    assert "4 have none, so their full_unseen and sampled100 are 1 for any model" in warning
    values = json.loads(report)
    assert (values["users_few_unseen"], values["users_none_unseen"]) == (8, 4)


@pytest.mark.parametrize(
    ("metric", "message"),
    [
        ("full_unseen/ndcg@10", "4 of 8 validation users have no unseen item"),
        ("sampled100/mrr", "8 of 8 validation users have fewer than 100 unseen items"),
        ("full/mrr", None),
    ],
)
def test_an_inflated_metric_does_not_silently_select_the_best_checkpoint(
    three_items: Path, tmp_path: Path, metric: str, message: str | None
) -> None:
    words = ["--train.metric", metric, "--train.max_epochs", "2", *SMALL]
    printed = train(three_items, tmp_path / "run", tmp_path / "log", *words)
    warnings = [line for line in printed.splitlines() if "warning" in line]
    if message is None:
        assert not warnings
    else:
        (line,) = warnings
        assert f"warning: {metric} selects the best checkpoint, but {message}" in line


def test_no_warning_where_every_user_has_enough_unseen_items(run: Path, tmp_path: Path) -> None:
    (report,) = longplay(["evaluate", str(run), "--json"], tmp_path / "log").splitlines()
    assert json.loads(report)["users_few_unseen"] == 0


def test_report_calls_a_run_finished_after_a_plain_evaluate(
    run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = Path(shutil.copytree(run, tmp_path / "run"))
    shutil.rmtree(run / "evaluation", ignore_errors=True)
    longplay(["evaluate", str(run), "--checkpoint", "last"], tmp_path / "log")
    assert not (run / "evaluation").exists()
    printed = longplay(["evaluate", str(run)], tmp_path / "log")
    assert printed.splitlines()[-1] == f"saved    {run}/evaluation/test.json"
    assert main(["report", str(run)]) == 0
    assert "1 run: 1 finished" in capsys.readouterr().out
    assert (run / "report" / "report.html").is_file()

    edit_json(run / "best.json", checkpoint="step-000009999")
    assert main(["report", str(run)]) == 0
    assert "1 run: 1 unfinished" in capsys.readouterr().out


def test_the_evaluation_of_an_interrupted_run_does_not_finish_it(run: Path, tmp_path: Path) -> None:
    run = Path(shutil.copytree(run, tmp_path / "run"))
    saved = json.loads((run / "config.json").read_text())
    saved["config"]["train"]["max_epochs"] = 2
    (run / "config.json").write_text(json.dumps(saved))
    printed = longplay(["evaluate", str(run), "--split", "validation"], tmp_path / "log")
    assert printed.splitlines()[-1].endswith("validation.json is not written: training has not ended")
    assert not (run / "evaluation" / "validation.json").exists()
