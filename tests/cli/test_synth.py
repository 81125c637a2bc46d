"""`longplay synth` from the command line: output, exit codes and files."""

from __future__ import annotations

import argparse
import re
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from support.datasets import REPOSITORY

from longplay.data_shards.errors import DataError
from longplay.launch import cli, synth


@pytest.mark.parametrize(
    ("text", "number"),
    [
        ("0", 0),
        ("250000", 250_000),
        ("250_000", 250_000),
        ("500K", 500_000),
        ("100m", 10**8),
        ("1.5G", 1_500_000_000),
        ("1B", 10**9),
    ],
)
def test_counts_accept_suffixes(text: str, number: int) -> None:
    assert synth.parse_count("events", text) == number


@pytest.mark.parametrize("text", ["", "-1", "1.5", "1e6", "ten", "1.2345K", "5T", "1 2", "M"])
def test_a_bad_count_is_refused_with_its_option(text: str) -> None:
    with pytest.raises(DataError, match=r"^--events is .*, but must be an integer such as 250000"):
        synth.parse_count("events", text)


def test_the_plan_is_printed_first_and_the_path_last(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert cli.main(["synth", "lfm1b", "--events", "20K", "--out", str(tmp_path), "--seed", "3"]) == 0
    printed, errors = capsys.readouterr()
    first, second, last = printed.splitlines()
    path = tmp_path / "LFM-1b_LEs.txt"
    assert errors == ""
    plan = r"synth lfm1b: 20,000 events of 2 users, catalog of 31,634,450 items, seed 3; about ([\d,]+) bytes"
    about = re.fullmatch(plan, first)
    assert about
    assert int(about[1].replace(",", "")) == path.stat().st_size
    assert second == f"  {path}  (20,000 rows)"
    assert last.startswith(f"wrote 20,000 rows, {path.stat().st_size:,} bytes in ")
    assert last.endswith(str(path))


def test_kuairand_lists_the_random_log_separately(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert synth.main(["kuairand", "--events", "20K", "--out", str(tmp_path), "--items", "5K"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert "catalog of 5,000 items" in lines[0]
    assert lines[5].endswith("log_random_4_22_to_5_08_27k.csv  (74 rows, in addition to the events)")
    assert lines[6].endswith(f"5 files in {tmp_path / 'data'}")
    assert len(list((tmp_path / "data").iterdir())) == 5


def test_ml1m_needs_no_size() -> None:
    parser = argparse.ArgumentParser()
    synth.register(parser.add_subparsers())
    args = parser.parse_args(["synth", "ml1m", "--out", "x"])
    assert args.events == "1000209"


@pytest.mark.parametrize(
    ("option", "message"),
    [
        ("--events=many", "--events is 'many', but must be an integer"),
        ("--events=0", "--events is 0, but must be at least 1"),
        ("--users=1M", "--users is 1000000 with --events 1000, but must be at most 1000"),
        ("--items=0", "--items is 0, but must be at least 1"),
        ("--seed=-3", "--seed is '-3', but must be an integer"),
    ],
)
def test_bad_options_fail_with_one_line(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], option: str, message: str
) -> None:
    assert synth.main(["kuairand", "--events=1K", "--out", str(tmp_path / "new"), option]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith(f"longplay: error: {message}")
    assert not (tmp_path / "new").exists()


def test_existing_files_need_overwrite(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    argv = ["ml1m", "--events", "1K", "--out", str(tmp_path)]
    assert synth.main(argv) == 0
    assert synth.main(argv) == 2
    assert "already exists; pass --overwrite" in capsys.readouterr().err
    assert synth.main([*argv, "--overwrite"]) == 0


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_while_writing_leaves_nothing_behind(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, request: pytest.FixtureRequest, number: signal.Signals
) -> None:
    if number == signal.SIGINT:  # ignored in background jobs of a shell
        before = signal.signal(number, signal.default_int_handler)
        request.addfinalizer(lambda: signal.signal(number, before))
    write = synth.write_raw

    def interrupted(*args: object, **_: object) -> list[Path]:
        return write(*args, progress=lambda *_: signal.raise_signal(number))  # type: ignore[arg-type]

    monkeypatch.setattr(synth, "write_raw", interrupted)
    try:
        code = synth.main(["lfm1b", "--events", "1K", "--out", str(tmp_path)])
    except SystemExit as stopped:
        code = stopped.code
    assert code == 128 + number
    assert list(tmp_path.iterdir()) == []


def test_a_killed_run_leaves_no_finished_file_and_can_be_repeated(tmp_path: Path) -> None:
    kill = "import os, signal, sys; from longplay.launch import synth; write = synth.write_raw; "
    kill += "synth.write_raw = lambda *a, **k: write(*a, progress=lambda *_: os.kill(os.getpid(), 9)); "
    kill += "synth.main(sys.argv[1:])"
    argv = ["lfm1b", "--events", "1K", "--out", str(tmp_path)]
    done = subprocess.run([sys.executable, "-c", kill, *argv], capture_output=True, timeout=60, check=False)
    assert done.returncode == -signal.SIGKILL
    assert [path.name for path in tmp_path.iterdir()] == [".LFM-1b_LEs.txt.writing"]
    assert synth.main(argv) == 0
    assert [path.name for path in tmp_path.iterdir()] == ["LFM-1b_LEs.txt"]


@pytest.mark.parametrize("how", [["-m", "longplay.launch.synth"], [str(REPOSITORY / "launch" / "synth.py")]])
def test_synth_runs_as_a_module_and_as_a_script(tmp_path: Path, how: list[str]) -> None:
    command = [sys.executable, *how, "ml1m", "--out", str(tmp_path), "--events", "500"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    assert (done.returncode, done.stderr) == (0, "")
    assert (tmp_path / "ratings.dat").read_bytes().count(b"\n") == 500
