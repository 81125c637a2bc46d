"""`longplay prepare` from the command line: output, exit codes and files."""

from __future__ import annotations

import gzip
import os
import re
import shlex
import signal
import subprocess
import sys
from pathlib import Path

import polars as pl
import pytest
from support.datasets import REPOSITORY, real_data
from support.json_edits import edit_json

from longplay.data_shards.errors import DataError
from longplay.data_shards.preparation import pipeline as prepare_module
from longplay.data_shards.storage.dataset import Dataset
from longplay.launch import prepare

GOOD = "user_id,item_id,timestamp\n1,10,1\n1,11,2\n2,10,3\n2,12,4\n"


def write(path: Path, content: str | bytes) -> str:
    path.write_bytes(content.encode() if isinstance(content, str) else content)
    return str(path)


def test_csv_is_prepared_and_summarized(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path, out = write(tmp_path / "events.csv", GOOD + "3,10,9\n\n"), tmp_path / "set"
    assert prepare.main(["csv", path, "--out", str(out)]) == 0
    printed, errors = capsys.readouterr()
    assert errors == ""
    assert printed.startswith(f"prepare csv: {path} -> {out}\n")
    table = [line.split() for line in printed.splitlines()]
    for row in (
        ["rows", "in", "6"],
        ["dropped,", "blank_line", "1"],
        ["dropped,", "user_too_short", "1"],
        ["events", "4"],
        ["users", "2"],
        ["items", "3"],
        ["shards", "2"],
    ):
        assert row in table
    dataset = Dataset.open(out)
    assert printed.splitlines()[-1] == f"dataset {dataset.dataset_id} is in {out}"
    assert dataset.manifest.source["paths"] == [path]


def test_a_dataset_of_an_older_format_is_refused_with_the_command_that_makes_it_again(tmp_path: Path) -> None:
    path, out = write(tmp_path / "my events.txt", GOOD.replace(",", "\t")), tmp_path / "set"
    options = ["--dedup", "latest", "--from=-5", "--shards", "1", "--time-scale", "10", "--sep", "tab"]
    assert prepare.main(["csv", path, "--out", str(out), *options]) == 0
    new = Dataset.open(out)
    edit_json(out / "manifest.json", schema_version=1)
    with pytest.raises(DataError, match=r"schema_version is 1, but .* reads 2; prepare .* `.*`$") as refused:
        Dataset.open(out)
    command = str(refused.value).split("`")[1]
    assert shlex.split(command)[:2] == ["longplay", "prepare"]
    assert prepare.main(shlex.split(command)[2:]) == 0
    assert Dataset.open(out).manifest == new.manifest


def test_a_single_bad_row_is_dropped_and_shown(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    rows = "".join(f"{n // 100},{n % 7},{n}\n" for n in range(5000))
    path = write(tmp_path / "events.csv", f"user_id,item_id,timestamp\n{rows}8,oops,5\n")
    argv = ["csv", path, "--out", str(tmp_path / "set"), "--item-type", "integer"]
    assert prepare.main(argv) == 0
    printed = capsys.readouterr().out
    assert f"  {path}, line 5002: item_id is not an integer ('oops')\n" in printed
    assert Dataset.open(tmp_path / "set").manifest.rows_dropped == {"not_an_integer:item_id": 1}


TEXT_FAULTS = {
    "brace in the text": (
        "user_id,item_id,timestamp\n1,{},3\n",
        r"line 2: item_id is not an integer \('\{\}'\)",
    ),
    "bad item": (
        "user_id,item_id,timestamp\n1,2,3\n1,abc,4\n",
        r"line 3: item_id is not an integer \('abc'\)",
    ),
    "bad time": (
        "user_id,item_id,timestamp\n1,2,3\n1,2,2020-01-01\n",
        r"line 3: timestamp is not an integer",
    ),
    "no user": ("user_id,item_id,timestamp\n,2,3\n1,2,4\n", r"line 2: user_id is missing"),
    "short row": ("user_id,item_id,timestamp\n1,2,3\n1,2\n", r"line 3: too few columns \('1,2'\)"),
    "long row": ("user_id,item_id,timestamp\n1,2,3,4\n", r"line 2: too many columns"),
    "open quote": ('user_id,item_id,timestamp\n1,"2,3\n', r"line 2: bad quoting"),
    "no such column": (
        "uid,item_id,timestamp\n1,2,3\n",
        r"no column 'user_id' \(columns: 'uid'.*with --user",
    ),
    "nearest column": (
        "user_id,itemid,timestamp\n1,2,3\n",
        r"nearest 'itemid'\); choose a column with --item",
    ),
    "only a header": ("user_id,item_id,timestamp\n", r"no events, only a header or blank lines"),
    "empty": ("", r"is empty; pass a file with events"),
    "binary": (b"user_id,item_id,timestamp\n1,2\x003,4\n", r"line 2: item_id is not an integer"),
    "one event each": (
        "user_id,item_id,timestamp\n1,2,3\n2,2,3\n",
        r"nothing left: .*lower --min-user-events",
    ),
}


@pytest.mark.parametrize("fault", TEXT_FAULTS)
def test_bad_text_fails_with_one_line_and_writes_nothing(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], fault: str
) -> None:
    content, message = TEXT_FAULTS[fault]
    path = write(tmp_path / "events.csv", content)
    options = ["--user-type=integer", "--item-type=integer", "--quote=double"]
    assert_refused(["csv", path, "--out", str(tmp_path / "set"), *options], message, capsys)
    assert [path.name for path in tmp_path.iterdir()] == ["events.csv"]


@pytest.mark.parametrize(
    ("features", "message"),
    [
        ("user:float", r"'user', which is a column of every dataset; .*user_1=user:float"),
        ("a:b", r"'a:b', but must be a list such as"),
        ("a:float,a:float", r"holds 'a' twice"),
    ],
)
def test_unusable_features_are_refused_with_the_reason(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], features: str, message: str
) -> None:
    path = write(tmp_path / "events.csv", "user_id,item_id,timestamp\n1,2,3\n1,3,4\n")
    assert_refused(["csv", path, "--out", str(tmp_path / "set"), "--features", features], message, capsys)


def test_a_stop_before_the_end_does_not_count_rows_that_were_not_read(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """The number of rows of a compressed file is estimated until its end."""
    path = tmp_path / "events.csv.gz"
    rows = [f"a{number * 7919 % 10007},{number * 31 % 997},{number**2}" for number in range(5000)]
    path.write_bytes(gzip.compress("\n".join(["user_id,item_id,timestamp", *rows, "1,2,3"]).encode()))
    options = ["--user-type", "integer", "--out", str(tmp_path / "set")]
    assert_refused(["csv", str(path), *options], r"5000 of at most \d+ rows are unusable", capsys)


def assert_refused(argv: list[str], message: str, capsys: pytest.CaptureFixture[str]) -> None:
    """Assert that the command exits with 2 and prints one line that matches `message` to stderr."""
    assert prepare.main(argv) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("longplay: error: ")
    assert re.search(message, line), line


PARQUET_FAULTS = {
    "no ids": ({"item_id": ["", "b"]}, r"row 1: item_id is missing \(''\)"),
    "fractions": ({"item_id": [1.0, 2.5]}, r"row 2: item_id is not an integer \('2\.5'\)"),
    "nulls": ({"timestamp": [1, None]}, r"row 2: timestamp is missing"),
    "lists": ({"item_id": [[1], [2]]}, r"column 'item_id' holds BIGINT\[\], not ids; .*--item"),
    "booleans": ({"timestamp": [True, False]}, r"column 'timestamp' holds BOOLEAN, not a time"),
    "no rows": ({"user_id": [], "item_id": [], "timestamp": []}, r"no events"),
}


@pytest.mark.parametrize("fault", PARQUET_FAULTS)
def test_bad_parquet_fails_with_one_line_and_writes_nothing(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], fault: str
) -> None:
    columns, message = PARQUET_FAULTS[fault]
    frame = pl.DataFrame({"user_id": [1, 1], "item_id": [1, 2], "timestamp": [1, 2], **columns})
    frame.write_parquet(tmp_path / "events.parquet")
    argv = ["parquet", str(tmp_path / "events.parquet"), "--out", str(tmp_path / "set")]
    assert_refused(argv, message, capsys)
    assert not (tmp_path / "set").exists()


def test_files_that_cannot_be_read_are_named(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = ["--out", str(tmp_path / "set")]
    cut = write(tmp_path / "cut.csv.gz", gzip.compress(GOOD.encode() * 100)[:-12])
    text = write(tmp_path / "events.csv", GOOD)
    gone = str(tmp_path / "gone")
    assert_refused(["csv", gone, *out], "gone: no such file", capsys)
    assert_refused(["parquet", gone, *out], "gone: no such file", capsys)
    assert_refused(["ml1m", gone, *out], "gone: no such file", capsys)
    assert_refused(["ml1m", str(tmp_path), *out], r"ratings\.dat: no such file", capsys)
    (tmp_path / "empty").mkdir()
    assert_refused(["csv", str(tmp_path / "empty"), *out], "is a folder without files", capsys)
    assert_refused(["csv", str(tmp_path), *out], "cut.csv.gz: cannot be read as text", capsys)
    assert_refused(["csv", cut, *out], r"cut\.csv\.gz: cannot be read as text", capsys)
    assert_refused(["parquet", text, *out], r"events\.csv: cannot be read as Parquet", capsys)


def test_a_scale_of_times_that_have_a_unit_is_refused(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    argv = ["csv", write(tmp_path / "events.csv", GOOD), "--out", str(tmp_path / "set"), "--time-scale=1000"]
    message = "--time-scale 1000 excludes --time-type decimal"
    assert_refused([*argv, "--time-type=decimal"], message, capsys)


@pytest.mark.parametrize(
    ("option", "message"),
    [
        ("--min-user-events=1", "--min-user-events is 1, but must be at least 2"),
        ("--max-bad-fraction=2", "--max-bad-fraction is 2.0, but must be between 0 and 1"),
        ("--shards=0", "--shards is 0, but must be at least 1"),
        ("--shards=9", "--shards is 9, more than the 2 users; pass at most 2"),
        ("--time-scale=0", "--time-scale is 0, but must be between 1 and 1e9"),
    ],
)
def test_bad_options_are_refused(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], option: str, message: str
) -> None:
    path = write(tmp_path / "events.csv", GOOD)
    assert_refused(["csv", path, "--out", str(tmp_path / "set"), option], message, capsys)


def test_columns_and_separator_are_options(tmp_path: Path) -> None:
    path = write(tmp_path / "log.txt", "when;who;what\n1;7;10\n2;7;11\n")
    names = ["--user", "who", "--item", "what", "--time", "when", "--sep", "semicolon"]
    assert prepare.main(["csv", path, "--out", str(tmp_path / "set"), *names]) == 0
    assert Dataset.open(tmp_path / "set").user_original_ids.tolist() == [7]


def test_an_existing_dataset_needs_overwrite(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    argv = ["csv", write(tmp_path / "events.csv", GOOD), "--out", str(tmp_path / "set")]
    assert prepare.main(argv) == 0
    capsys.readouterr()
    assert_refused(argv, "already contains a dataset; pass --overwrite", capsys)
    assert prepare.main([*argv, "--overwrite"]) == 0


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_after_a_signal_there_is_no_output_and_the_command_can_be_repeated(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    request: pytest.FixtureRequest,
    capsys: pytest.CaptureFixture[str],
    number: signal.Signals,
) -> None:
    if number == signal.SIGINT:  # ignored in background jobs of a shell
        before = signal.signal(number, signal.default_int_handler)
        request.addfinalizer(lambda: signal.signal(number, before))
    argv = ["csv", write(tmp_path / "events.csv", GOOD), "--out", str(tmp_path / "set")]
    with monkeypatch.context() as patched:
        patched.setattr(prepare_module, "write_shards", lambda *_, **__: signal.raise_signal(number))
        try:
            code = prepare.main(argv)
        except SystemExit as stopped:
            code = stopped.code
    assert code == 128 + number
    assert "the same command resumes" in capsys.readouterr().err
    assert not (tmp_path / "set").exists()
    assert prepare.main(argv) == 0
    assert sorted(path.name for path in tmp_path.iterdir()) == ["events.csv", "set"]


OWN_READER = """
from dataclasses import dataclass
from pathlib import Path

import polars as pl
from longplay.data_shards.readers.columns import Columns
from longplay.data_shards.readers.parquet import ParquetSource
from longplay.data_shards.readers.registry import READERS, Reader

def add_arguments(parser):
    parser.add_argument("path", type=Path)
    parser.add_argument("--repeat", type=int, default=1)

def open_pairs(args):
    \"\"\"Read lines 'user item' whose line number is the time.\"\"\"
    lines = args.path.read_text().splitlines() * args.repeat
    rows = [(*map(int, line.split()), number) for number, line in enumerate(lines)]
    table = args.path.with_suffix(".parquet")
    pl.DataFrame(rows, schema=["user_id", "item_id", "timestamp"], orient="row").write_parquet(table)
    return ParquetSource(format="pairs", paths=(table,), columns=Columns(time_unit="s"))

READERS.register("pairs", Reader(help="pairs", add_arguments=add_arguments, open=open_pairs))
"""


def test_import_adds_a_reader_from_a_users_module(tmp_path: Path) -> None:
    (tmp_path / "my_package").mkdir()
    write(tmp_path / "my_package" / "my_reader.py", OWN_READER)
    path, out = write(tmp_path / "pairs.txt", "1 10\n1 11\n2 10\n2 12\n"), tmp_path / "set"
    words = ["--import", "my_package.my_reader", "pairs", path, "--repeat", "3", "--until", "1970-01-02"]
    environment = {**os.environ, "PYTHONPATH": f"{tmp_path}:{os.environ.get('PYTHONPATH', '')}"}
    command = [sys.executable, "-m", "longplay.launch.prepare", *words, "--out", str(out)]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=60, check=False)
    assert (done.returncode, done.stderr) == (0, "")
    assert Dataset.open(out).num_events == 12


def test_a_module_that_cannot_be_imported_is_named(capsys: pytest.CaptureFixture[str]) -> None:
    assert prepare.main(["--import", "no_such_module", "csv"]) == 2
    assert "--import no_such_module: cannot be imported (No module named" in capsys.readouterr().err


@pytest.mark.parametrize(
    "how", [["-m", "longplay.launch.prepare"], [str(REPOSITORY / "launch" / "prepare.py")]]
)
def test_prepare_runs_as_a_module_and_as_a_script(tmp_path: Path, how: list[str]) -> None:
    size = ["--users", "50", "--items", "60", "--events", "500"]
    command = [sys.executable, *how, "synthetic", "--out", str(tmp_path / "set"), *size]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    assert (done.returncode, done.stderr) == (0, "")
    assert Dataset.open(tmp_path / "set").num_events == 500


def test_ml1m_is_prepared_by_the_documented_command(tmp_path: Path) -> None:
    names = ["--user", "user_id", "--item", "item_id", "--time", "timestamp"]
    argv = ["parquet", str(real_data("ml-1m.parquet")), *names, "--out", str(tmp_path / "ml1m")]
    assert prepare.main(argv) == 0
    manifest = Dataset.open(tmp_path / "ml1m").manifest
    assert (manifest.rows_in, manifest.num_events, manifest.rows_dropped) == (1_000_209, 1_000_209, {})
    assert (manifest.num_users, manifest.num_items, len(manifest.shards)) == (6040, 3706, 24)
