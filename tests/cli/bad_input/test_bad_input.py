"""Invalid input: one line with the place and the remedy, exit code 2, and no changed file."""

from pathlib import Path

import polars as pl
import pytest
from support.json_edits import edit_json
from support.refusals import HEAD, SIZE, Refuse

from longplay.launch.cli import main

# ---------------------------------------------------------------------- prepare

TEXT_FAULTS = {
    "missing column": ("user_id,item,timestamp\n1,2,3\n", r"events\.csv: no column 'item_id'.*--item"),
    "item that is missing": (
        HEAD + "1,2,3\n1,,4\n",
        r"events\.csv, line 3: item_id is missing .*correct the file",
    ),
    "time that is not an integer": (
        HEAD + "1,2,3\n1,2,noon\n",
        r"events\.csv, line 3: timestamp is not an integer",
    ),
    "user that is missing": (HEAD + ",2,3\n1,2,4\n", r"events\.csv, line 2: user_id is missing"),
    "empty file": ("", r"events\.csv: is empty; pass a file with events"),
    "only a header": (HEAD, r"events\.csv: no events, .*pass a file with events"),
    "one event per user": (HEAD + "1,2,3\n2,2,3\n", r"events\.csv: nothing left: .*--user"),
}


@pytest.mark.parametrize("fault", TEXT_FAULTS)
def test_prepare_refuses_bad_text(tmp_path: Path, refuse: Refuse, fault: str) -> None:
    content, pattern = TEXT_FAULTS[fault]
    (tmp_path / "events.csv").write_text(content)
    refuse("prepare", "csv", tmp_path / "events.csv", "--out", tmp_path / "out", pattern=pattern)


def test_prepare_refuses_files_it_cannot_read(tmp_path: Path, refuse: Refuse) -> None:
    (tmp_path / "text.parquet").write_text("no Parquet")
    out = ("--out", tmp_path / "out")
    refuse("prepare", "csv", tmp_path / "gone", *out, pattern="gone: no such file; check the path")
    refuse("prepare", "csv", tmp_path, *out, pattern="is a folder without files")
    refuse("prepare", "ml1m", tmp_path, *out, pattern=r"ratings\.dat: no such file; check the path")
    refuse("prepare", "parquet", tmp_path / "text.parquet", *out, pattern=r"text\.parquet: cannot be read")


def test_prepare_refuses_a_parquet_column_without_ids(tmp_path: Path, refuse: Refuse) -> None:
    path = tmp_path / "events.parquet"
    pl.DataFrame({"user_id": [1, 1], "item_id": [[1], [2]], "timestamp": [1, 2]}).write_parquet(path)
    pattern = r"events\.parquet: column 'item_id' holds BIGINT\[\], not ids; .*--item"
    refuse("prepare", "parquet", path, "--out", tmp_path / "out", pattern=pattern)


def test_prepare_replaces_a_dataset_only_with_overwrite(tmp_path: Path, data: Path, refuse: Refuse) -> None:
    (tmp_path / "photos").mkdir()
    (tmp_path / "photos" / "one.jpg").touch()
    refuse(
        "prepare", "synthetic", "--out", data, *SIZE, pattern="already contains a dataset; pass --overwrite"
    )
    taken = ("--out", tmp_path / "photos", "--overwrite")
    refuse("prepare", "synthetic", *taken, *SIZE, pattern="is not a prepared dataset; choose another --out")


# ---------------------------------------------------------------------- train: settings

BAD_SETTINGS = {
    "unknown setting": (
        "--train.lrr 1",
        r"--train\.lrr: unknown setting; did you mean --train\.lr\?",
    ),
    "another library's name": ("--train.learning_rate 1", r"; did you mean --train\.lr\?"),
    "another name, no section": ("--batch_size 1", r"; did you mean --data\.rows_per_step\?"),
    "setting in another section": ("--train.weight_decay 1", r"; did you mean --engine\.weight_decay\?"),
    "section without a setting": ("--loss bce", r"; did you mean --loss\.name\?"),
    "unlike any setting of its section": ("--train.zzzz 3", "unknown setting; the sections are encoder"),
    "setting without its section": ("--max_epochs 3", r"did you mean --train\.max_epochs\?"),
    "setting unlike any other": (
        "--zzzz 3",
        "the sections are encoder, inputs, loss, table, engine, data, train",
    ),
    "a word without dashes": ("fast", "'fast': is not a setting; write --section.name value"),
    "no value": ("--train.lr", r"--train\.lr: has no value; write --train\.lr VALUE"),
    "text for a number": ("--train.lr fast", r"train\.lr='fast': must be a number$"),
    "not a whole number": ("--train.max_steps 1.5", r"train\.max_steps=1\.5: must be a whole number$"),
    "out of range": ("--train.lr -1", r"train\.lr=-1: must be above 0"),
    "not one of the choices": ("--encoder.model lstm", r"encoder\.model='lstm': unknown; available: gru4rec"),
    "context length of 0": ("--context_length 0", "^longplay: error: context_length=0: .*nearest valid: 1"),
    "seed below 0": ("--seed -1", "^longplay: error: seed=-1: must be at least 0; nearest valid: 0$"),
    "a shared setting in one section": (
        "--data.seed 3",
        r"data\.seed: set --seed, which applies to every section",
    ),
    "heads that do not divide": (
        "--encoder.model sasrec --encoder.num_heads 3",
        r"encoder\.num_heads=3: must divide d_model = 64; nearest valid: 2",
    ),
    "rows that do not divide": (
        "--data.rows_per_step 100",
        r" data\.rows_per_step=100: must be a multiple of num_lanes = 12; nearest valid: 96 or 108",
    ),
    "split": ("--data.split.val_fraction 2", r" data\.split\.val_fraction=2: must be below 1"),
    "row optimizer": ("--table.optimizer.eps -1", r" table\.optimizer\.eps=-1: must be above 0"),
    "zero_dense in host memory": (
        "--table.update zero_dense --engine.zero_stage 3 --table.placement host",
        r" table\.placement='host': needs table\.update row_sparse",
    ),
    "cached rows of a table on the device": (
        "--loss.name bce --table.cached_rows 9",
        r" table\.cached_rows=9: needs table\.placement host",
    ),
    "full softmax in host memory": (
        "--loss.name full_softmax --table.placement host",
        r"table\.placement=host: loss\.name=full_softmax reads every row.*--loss\.name sampled_softmax",
    ),
    "zero_dense in stage 1": (
        "--table.update zero_dense",
        r"engine\.zero_stage=1: .* needs 3.*set --engine\.zero_stage 3 or --table\.update row_sparse",
    ),
    "metric that is not measured": ("--train.metric full/ndcg@11", r"did you mean full/ndcg@10\?"),
    "true for a number": ("--train.lr true", r"train\.lr=True: must be a number$"),
    "not a number": ("--table.init_std nan", r"table\.init_std='nan': must be a finite number"),
    "not finite": ("--table.lr_scale inf", r"table\.lr_scale='inf': must be a finite number"),
    "far too large": (
        "--train.timeout_s 1e300",
        r"train\.timeout_s=1e\+300: must be at most .*; nearest valid",
    ),
    "a number for a switch": ("--encoder.residual 2", r"encoder\.residual=2: must be true or false"),
    "too few values": ("--engine.betas 0.9", r"engine\.betas: has too few values"),
    "too many values": ("--engine.betas 0.9,0.99,0.999", r"engine\.betas=.*: has 3 values; must have 2"),
    "no values": ("--evaluation.cutoffs ,", r"evaluation\.cutoffs=\[\]: must have at least 1 value"),
    "one bad value": ("--evaluation.cutoffs 5,0", r"evaluation\.cutoffs=0: must be at least 1"),
    "no users to validate on": (
        "--evaluation.max_validation_users 0",
        "evaluation.max_validation_users=0: must be at least 1",
    ),
}


@pytest.mark.parametrize("fault", BAD_SETTINGS)
def test_train_refuses_bad_settings(tmp_path: Path, data: Path, refuse: Refuse, fault: str) -> None:
    settings, pattern = BAD_SETTINGS[fault]
    words = ("--data", data, "--run", tmp_path / "run", *settings.split())
    refuse("train", "mambarec", *words, pattern=pattern)


def test_train_refuses_an_unknown_recipe(tmp_path: Path, data: Path, refuse: Refuse) -> None:
    words = ("--data", data, "--run", tmp_path / "run")
    refuse("train", "mamba-rec", *words, pattern="recipe 'mamba-rec': .*did you mean mambarec")
    refuse("train", "x", *words, pattern="available: demo, ml1m, gru4rec, sasrec")


# ---------------------------------------------------------------------- train: dataset and run folder


def test_train_refuses_a_folder_without_a_dataset(tmp_path: Path, refuse: Refuse) -> None:
    run = ("--run", tmp_path / "run")
    gone = tmp_path / "gone"
    refuse(
        "train",
        "demo",
        "--data",
        gone,
        *run,
        pattern="gone: does not exist; check the path, or make .*prepare",
    )


def test_train_refuses_shards_that_do_not_match_the_manifest(
    tmp_path: Path, data: Path, refuse: Refuse
) -> None:
    words = ("train", "demo", "--data", data, "--run", tmp_path / "run")
    shard = data / "shard-000003.tar"
    content = shard.read_bytes()
    shard.write_bytes(content[:-512])
    refuse(*words, pattern=r"shard-000003\.tar: shard has \d+ bytes, expected \d+; restore the file")
    shard.unlink()
    refuse(
        *words, pattern=r"shard-000003\.tar: shard is missing; restore the file or prepare the dataset again"
    )
    shard.write_bytes(content)
    (data / "items.parquet").unlink()
    refuse(*words, pattern=r"items\.parquet: is missing; restore the file")


def test_train_refuses_a_damaged_manifest(tmp_path: Path, data: Path, refuse: Refuse) -> None:
    words = ("train", "demo", "--data", data, "--run", tmp_path / "run")
    edit_json(data / "manifest.json", num_users=61)
    refuse(*words, pattern=r"manifest\.json: is damaged \(.*61\); prepare the dataset again")
    content = (data / "manifest.json").read_text()
    (data / "manifest.json").write_text(content.replace('"num_users": 61', '"num_users": 60'))
    refuse(*words, pattern=r"manifest\.json: is damaged \(its content does not match its sha256\)")
    (data / "manifest.json").write_text("{")
    refuse(*words, pattern=r"manifest\.json: cannot be read .*prepare the dataset again")


def test_train_refuses_a_split_without_validation_users(tmp_path: Path, refuse: Refuse) -> None:
    (tmp_path / "events.csv").write_text(HEAD + "".join(f"{n // 2},{n % 3},{n}\n" for n in range(40)))
    assert main(["prepare", "csv", str(tmp_path / "events.csv"), "--out", str(tmp_path / "pairs")]) == 0
    words = ("--data", tmp_path / "pairs", "--run", tmp_path / "run")
    pattern = r"pairs: the split leaves no user to validate on; change data\.split"
    refuse("train", "demo", *words, pattern=pattern)


def test_train_refuses_more_ranks_than_lanes(
    tmp_path: Path, data: Path, refuse: Refuse, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, value in (("RANK", "0"), ("LOCAL_RANK", "0"), ("WORLD_SIZE", "13")):
        monkeypatch.setenv(name, value)
    pattern = r"13 ranks for 12 lanes: .*raise data\.num_lanes .* or start 12 ranks"
    refuse("train", "demo", "--data", data, "--run", tmp_path / "run", pattern=pattern)


def test_train_refuses_the_run_folder_of_another_dataset(
    tmp_path: Path, data: Path, run: Path, refuse: Refuse
) -> None:
    other = tmp_path / "other"
    assert main(["prepare", "synthetic", "--out", str(other), *SIZE, "--seed", "1"]) == 0
    pattern = r"run: belongs to another dataset \(.*set\); give that --data, or another --run folder"
    refuse("train", "mambarec", "--data", other, "--run", run, pattern=pattern)


def test_train_refuses_the_run_folder_of_another_model(data: Path, run: Path, refuse: Refuse) -> None:
    words = ("--data", data, "--run", run)
    pattern = r"other settings \(encoder\.model: mambarec -> sasrec\); use those settings, or give"
    refuse("train", "sasrec", *words, pattern=pattern)
    pattern = r"other settings \(encoder\.num_blocks: 1 -> 3\); use those settings"
    refuse("train", "mambarec", *words, "--encoder.num_blocks", 3, pattern=pattern)


def test_train_refuses_a_folder_that_holds_something_else(tmp_path: Path, data: Path, refuse: Refuse) -> None:
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "thesis.tex").touch()
    (tmp_path / "file").touch()
    words = ("train", "demo", "--data", data, "--run")
    refuse(*words, tmp_path / "full", pattern="full: is neither empty nor a run folder; give another one")
    refuse(*words, tmp_path / "file", pattern="file: is a file; give a folder")


def test_train_refuses_a_damaged_run_folder(data: Path, run: Path, refuse: Refuse) -> None:
    (run / "config.json").write_text('{"config": ')
    refuse(
        "train", "mambarec", "--data", data, "--run", run, pattern=r"config\.json: cannot be read .*another"
    )
