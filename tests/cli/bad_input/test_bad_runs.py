"""Bad input of evaluate and recommend, and paths of another kind: one line with the remedy."""

import json
from pathlib import Path

import polars as pl
import pytest
from support.refusals import HEAD, SIZE, Refuse

from longplay.launch.cli import main
from longplay.serving.export_format import ExportError, read_export_config


def test_evaluate_refuses_a_folder_without_a_run(tmp_path: Path, data: Path, refuse: Refuse) -> None:
    (tmp_path / "empty").mkdir()
    for folder, what in (
        ("gone", "does not exist"),
        ("empty", "is not a run folder"),
        (data, "is a prepared"),
    ):
        pattern = f"{what}.*; give the folder of `longplay train --run`"
        refuse("evaluate", tmp_path / folder, pattern=pattern)
    refuse("report", tmp_path / "gone", pattern="gone: does not exist; give sweeps or run folders")
    with pytest.raises(ExportError, match="gone: does not exist; give the folder that `longplay export"):
        read_export_config(tmp_path / "gone")


def test_evaluate_refuses_a_run_without_the_checkpoint(run: Path, refuse: Refuse) -> None:
    refuse("evaluate", run, pattern="run: has no checkpoint yet; train first")
    pattern = "--checkpoint step-7: is not in .*checkpoints; give one of best, last$"
    refuse("evaluate", run, "--checkpoint", "step-7", pattern=pattern)
    (run / "best.json").write_text("{")
    refuse("evaluate", run, pattern=r"best\.json: cannot be read .*--checkpoint last")


def test_evaluate_refuses_another_dataset(tmp_path: Path, data: Path, run: Path, refuse: Refuse) -> None:
    assert main(["prepare", "synthetic", "--out", str(tmp_path / "other"), *SIZE, "--seed", "1"]) == 0
    pattern = "other: is not the dataset that .*run was trained on; give that dataset"
    refuse("evaluate", run, "--data", tmp_path / "other", pattern=pattern)
    data.rename(tmp_path / "moved")
    refuse("evaluate", run, pattern="set: the dataset of .*run is not there; give its folder with --data")


@pytest.mark.parametrize("scheme", ["pipe:", "PIPE:"])
def test_a_command_in_config_json_is_not_run(
    tmp_path: Path, data: Path, run: Path, refuse: Refuse, scheme: str
) -> None:
    saved = json.loads((run / "config.json").read_text())
    command = f"{scheme}touch {tmp_path / 'hacked'}; cat {data}"
    (run / "config.json").write_text(json.dumps(saved | {"data": command}))
    pattern = "config.json: its dataset is the command .*not run; to run it, give --data '"
    for words in (["evaluate"], ["recommend", "--user", 1], ["export", "--out", tmp_path / "new"]):
        refuse(*words, run, pattern=pattern)


def test_recommend_refuses_a_bad_history(tmp_path: Path, run: Path, refuse: Refuse) -> None:
    history = tmp_path / "history.txt"
    words = ("recommend", run, "--history", history)
    refuse(*words, pattern=r"history\.txt: cannot be read \(No such file or directory\); give a text file")
    history.write_text("1 2\n3 four\n")
    refuse(*words, pattern=r"history\.txt, line 2: 'four' is not a 64-bit integer item id")
    history.write_text("9" * 30)
    refuse(*words, pattern=r"history\.txt, line 1: '9+' is not a 64-bit integer item id")
    history.write_text("1\n10.5")
    refuse(*words, pattern=r"history\.txt, line 2: '10\.5' is not a 64-bit integer item id")
    for content in ("", "-1 -2"):
        history.write_text(content)
        refuse(*words, pattern=r"history\.txt: holds no item of the dataset; give original item ids")
    history.write_bytes(b"\xff\xfe\x00")
    refuse(*words, pattern=r"history\.txt: cannot be read \(not text\); give a text file")


@pytest.mark.parametrize("option", ["--user", "--history"])
def test_recommend_refuses_to_answer_for_the_last_of_two(run: Path, refuse: Refuse, option: str) -> None:
    words = ("recommend", run, option, "42", option, "43")
    refuse(*words, pattern=rf"argument {option}: is given twice; run the command once for each")


def test_recommend_refuses_an_unknown_user_and_an_empty_list(run: Path, refuse: Refuse) -> None:
    refuse("recommend", run, "--user", 10**6, pattern="--user 1000000: is not a user of .*give an original")
    refuse(
        "recommend",
        run,
        "--user",
        1,
        "--top",
        0,
        pattern="argument --top: '0': must be a whole number, at least 1",
    )


KINDS = {
    "set": r"set: is a prepared dataset, which commands take as --data",
    "run": r"run: is a run folder, which `longplay evaluate`, `recommend` and `export` take",
    "model": r"model: is an export, which longplay\.load\('.*model'\) opens in Python",
    "sweep": r"sweep: is a sweep, which `longplay report` takes; its runs are in .*sweep/runs",
    "raw.csv": r"raw\.csv: is a file; `longplay prepare csv .*raw\.csv --out DIR` makes a dataset",
    "raw.jsonl": r"raw\.jsonl: is a file; `longplay prepare jsonl .*raw\.jsonl --out DIR`",
    "raw.parquet": r"raw\.parquet: is a file; `longplay prepare parquet .*raw\.parquet --out DIR`",
}


@pytest.fixture
def kinds(data: Path, run: Path, tmp_path: Path) -> Path:
    """Return a folder with a path of each kind."""
    for file, content in (
        ("model/config.json", '{"format": "longplay-export"}'),
        ("sweep/sweep.json", "{}"),
        ("raw.csv", HEAD + "1,2,3\n"),
        ("raw.jsonl", '{"user_id": 1, "item_id": 2, "timestamp": 3}\n'),
    ):
        (tmp_path / file).parent.mkdir(exist_ok=True)
        (tmp_path / file).write_text(content)
    pl.DataFrame({"user_id": [1], "item_id": [2], "timestamp": [3]}).write_parquet(tmp_path / "raw.parquet")
    return tmp_path


@pytest.mark.parametrize("kind", KINDS)
def test_a_path_of_another_kind_is_named_with_what_reads_it(kinds: Path, refuse: Refuse, kind: str) -> None:
    path = kinds / kind
    if kind != "run":
        refuse("recommend", path, "--user", "1", pattern=KINDS[kind])
        refuse("evaluate", path, pattern=KINDS[kind])
        refuse("export", path, "--out", kinds / "new", pattern=KINDS[kind])
    if kind != "set":
        refuse("train", "mambarec", "--data", path, "--run", kinds / "new", pattern=KINDS[kind])
        refuse("inspect", path, pattern=KINDS[kind])
    if kind != "model":
        with pytest.raises(ExportError, match=KINDS[kind]):
            read_export_config(path)
    if kind in ("set", "model", "raw.csv"):
        refuse("report", path, pattern=KINDS[kind])


def test_prepare_names_the_format_of_the_other_reader(kinds: Path, refuse: Refuse) -> None:
    out = ("--out", kinds / "new")
    pattern = r"raw\.parquet: is a Parquet file; read it with `longplay prepare parquet .*raw\.parquet`"
    refuse("prepare", "csv", kinds / "raw.parquet", *out, pattern=pattern)
    pattern = r"raw\.csv: cannot be read as Parquet .*read text with `longplay prepare csv`"
    refuse("prepare", "parquet", kinds / "raw.csv", *out, pattern=pattern)


@pytest.mark.parametrize("option", ["--output", "--output-dir", "--save_dir"])
def test_other_names_of_out_get_a_hint(kinds: Path, refuse: Refuse, option: str) -> None:
    new, unknown = (
        kinds / "new",
        f"{option.replace('-', '_').replace('__', '--')}: unknown option; did you mean",
    )
    refuse("prepare", "csv", kinds / "raw.csv", option, new, pattern=f"{unknown} --out")
    refuse("export", kinds / "run", option, new, pattern=f"{unknown} --out")
    refuse("evaluate", kinds / "run", option, new, pattern=f"{unknown} --out")
    refuse("train", "mambarec", "--data", kinds / "set", option, new, pattern=f"{unknown} --run")


@pytest.mark.parametrize("out", ["run", "run/config.json/file"])
def test_evaluate_refuses_a_file_that_cannot_be_written_before_it_evaluates(
    tmp_path: Path, run: Path, refuse: Refuse, out: str
) -> None:
    refuse(
        "evaluate", run, "--out", tmp_path / out, pattern=f"--out .*{out}: cannot be written; give another"
    )
