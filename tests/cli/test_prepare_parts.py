"""`longplay prepare --part K/N` and `--merge N` write the dataset that one process writes."""

from __future__ import annotations

import os
import signal
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest
from support.ranks import FORK_SERVER

from longplay.common.locks import FolderLock
from longplay.data_shards.preparation import partition
from longplay.data_shards.preparation.options import WorkPlan
from longplay.data_shards.preparation.parts import PASSES
from longplay.launch.prepare import main

NUM_USERS = 60
SEQUENCES = ("--user", "user", "--item", "items", "--time", "times")


def write_sequences(folder: Path, *, strings: bool) -> list[str]:
    """Write five files with a user in each row. Return the command that prepares them, without `--out`."""
    rng = np.random.default_rng(0)
    lengths = rng.integers(1, 40, NUM_USERS)
    items = [rng.integers(0, 50, length) * 10**8 for length in lengths]
    frame = pl.DataFrame(
        {
            "user": [f"u{user}" if strings else user for user in rng.permutation(NUM_USERS)],
            "items": [[f"Ö{item}" if strings else item for item in values.tolist()] for values in items],
            "times": [rng.integers(0, 9, length).tolist() for length in lengths],
            "price": [rng.random(length).tolist() for length in lengths],
            "kind": [[f"k{kind}" for kind in rng.integers(0, 5, length)] for length in lengths],
        }
    )
    folder.mkdir()
    for number in range(5):
        frame[number * 12 : (number + 1) * 12].write_parquet(folder / f"part-{number}.parquet")
    features = ["--features", "kind:categorical,price:float"] if strings else []
    return ["sequences", str(folder), *SEQUENCES, *features, "--min-item-events", "3", "--shards", "7"]


def write_text(folder: Path) -> list[str]:
    """Write two text files, one with a faulty row, whose times are the numbers of their rows."""
    rng = np.random.default_rng(0)
    folder.mkdir()
    for name in "ab":
        lines = [f"{user},{item}\n" for user, item in rng.integers(0, 40, (600, 2))]
        (folder / f"{name}.csv").write_text("".join(["user,item\n", *lines, "5,\n" * (name == "a")]))
    options = "--user user --item item --time none --shards 4 --max-bad-fraction 0.1"
    return ["csv", str(folder), *options.split()]


def write_source(folder: Path, kind: str) -> list[str]:
    return write_text(folder) if kind == "text" else write_sequences(folder, strings=kind == "strings")


@pytest.fixture(autouse=True)
def _small_pieces(monkeypatch: pytest.MonkeyPatch) -> None:
    plan = WorkPlan(num_workers=2, block_bytes=500, num_buckets=5)
    monkeypatch.setattr(WorkPlan, "make", lambda *_: plan)


def part(name: str, share: str) -> list[str]:
    return ["--pass", name, "--part", share]


def merge(name: str, num_parts: int) -> list[str]:
    return ["--pass", name, "--merge", str(num_parts)]


def run_passes(words: list[str], num_parts: int) -> None:
    for name in PASSES:
        for number in range(1, num_parts + 1):
            assert main([*words, *part(name, f"{number}/{num_parts}")]) == 0
        assert main([*words, *merge(name, num_parts)]) == 0


def folder_bytes(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def error_of(words: list[str], capsys: pytest.CaptureFixture[str]) -> str:
    capsys.readouterr()
    assert main(words) == 2
    (line,) = capsys.readouterr().err.splitlines()
    return line


@pytest.mark.parametrize(
    ("kind", "num_parts"), [("strings", 1), ("strings", 3), ("integers", 6), ("text", 2)]
)
def test_parts_write_the_bytes_of_one_process(tmp_path: Path, kind: str, num_parts: int) -> None:
    words = write_source(tmp_path / "raw", kind)
    assert main([*words, "--out", str(tmp_path / "one")]) == 0
    run_passes([*words, "--out", str(tmp_path / "parts")], num_parts)
    assert folder_bytes(tmp_path / "parts") == folder_bytes(tmp_path / "one")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["one", "parts", "raw"]


def killed_at_the_second_run(words: list[str]) -> None:
    """Run the command, which kills itself when it has written one run."""
    plan = WorkPlan(num_workers=1, block_bytes=500, num_buckets=5)
    WorkPlan.make = classmethod(lambda *_: plan)  # pyright: ignore[reportAttributeAccessIssue]
    write, runs = partition.ArrayFile.write, []

    def write_once(path: Path, *rest: Any) -> None:
        if runs:
            os.kill(os.getpid(), signal.SIGKILL)
        runs.append(path)
        write(path, *rest)

    partition.ArrayFile.write = staticmethod(write_once)  # pyright: ignore[reportAttributeAccessIssue]
    main(words)


def test_a_killed_part_resumes_without_repeating_its_pieces(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    plan = WorkPlan(num_workers=1, block_bytes=500, num_buckets=5)
    monkeypatch.setattr(WorkPlan, "make", lambda *_: plan)
    words = write_source(tmp_path / "raw", "text")
    assert main([*words, "--out", str(tmp_path / "one")]) == 0
    words += ["--out", str(tmp_path / "parts")]
    process = FORK_SERVER.Process(target=killed_at_the_second_run, args=([*words, *part("read", "2/2")],))
    process.start()
    process.join(120)
    assert process.exitcode == -signal.SIGKILL
    (run,) = (tmp_path / "parts.work" / "runs").glob("run-*")
    written = run.stat().st_mtime_ns
    assert main([*words, *part("read", "1/2")]) == 0
    assert "pass read: part 1 of 2 is done, part 2 of 2 is not" in capsys.readouterr().out
    assert "part 2 of 2 is missing; run --pass read --part K/2" in error_of(
        [*words, *merge("read", 2)], capsys
    )
    assert main([*words, *part("read", "2/2")]) == 0
    assert run.stat().st_mtime_ns == written
    assert main([*words, *merge("read", 2)]) == 0
    run_passes(words, 2)  # as a batch script does that is repeated after a failure
    assert folder_bytes(tmp_path / "parts") == folder_bytes(tmp_path / "one")


def test_merge_names_the_missing_parts(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = [*write_source(tmp_path / "raw", "integers"), "--out", str(tmp_path / "set")]
    assert main([*words, *part("read", "2/4")]) == 0
    message = error_of([*words, *merge("read", 4)], capsys)
    assert "parts 1, 3, 4 of 4 are missing; run --pass read --part K/4" in message
    assert not (tmp_path / "set").exists()


def test_another_command_in_the_folder_of_parts_is_refused(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = [*write_source(tmp_path / "raw", "integers"), "--out", str(tmp_path / "set")]
    assert main([*words, *part("read", "1/2")]) == 0
    for other in (
        part("read", "1/3"),
        [*part("read", "1/2"), "--min-user-events", "5"],
        [*merge("read", 2), "--seed", "1"],
        [],
        ["--seed", "1"],
    ):
        message = error_of([*words, *other], capsys)
        assert "set.work: holds the unfinished work of another command" in message
    run_passes(words, 2)
    assert (tmp_path / "set" / "manifest.json").exists()


def test_parts_are_refused_in_the_folder_of_an_interrupted_command(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = [*write_source(tmp_path / "raw", "text"), "--out", str(tmp_path / "set")]
    process = FORK_SERVER.Process(target=killed_at_the_second_run, args=(words,))
    process.start()
    process.join(120)
    assert "holds the unfinished work of another command" in error_of([*words, *part("read", "1/2")], capsys)
    assert main(words) == 0


def test_a_part_is_prepared_by_one_process_at_a_time(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = [*write_source(tmp_path / "raw", "integers"), "--out", str(tmp_path / "set")]
    assert main([*words, *part("read", "1/2")]) == 0
    work = tmp_path / "set.work"
    with FolderLock(work / "part-1"):
        assert "another process is preparing part 1" in error_of([*words, *part("read", "1/2")], capsys)
        assert main([*words, *part("read", "2/2")]) == 0
    with FolderLock(work, shared=True):
        assert "another process is preparing" in error_of([*words, *merge("read", 2)], capsys)
    assert main([*words, *merge("read", 2)]) == 0


def test_unusable_rows_are_named_by_the_merge(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = [*write_source(tmp_path / "raw", "text"), "--out", str(tmp_path / "set")]
    words[words.index("--max-bad-fraction") + 1] = "0"
    for share in ("1/2", "2/2"):
        assert main([*words, *part("read", share)]) == 0
    assert "a.csv, line 602" in error_of([*words, *merge("read", 2)], capsys)
    assert not list(tmp_path.glob("set*"))


def test_a_pass_waits_for_the_one_before(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = [*write_source(tmp_path / "raw", "integers"), "--out", str(tmp_path / "set")]
    assert main([*words, *part("read", "1/1")]) == 0
    for later in (part("sort", "1/1"), merge("write", 1)):
        message = error_of([*words, *later], capsys)
        assert "pass read is not complete; run --pass read --part K/1 for each K, then --pass read" in message


@pytest.mark.parametrize("share", ["0/2", "3/2", "2", "a/b", "1/0"])
def test_a_part_that_does_not_exist_is_refused(capsys: pytest.CaptureFixture[str], share: str) -> None:
    message = error_of(["sequences", "x", "--out", "y", *part("read", share)], capsys)
    assert f"'{share}' is not K/N with K from 1 to N, such as 2/8" in message


@pytest.mark.parametrize("words", [["--part", "1/2"], ["--merge", "2"], ["--pass", "read"]])
def test_an_incomplete_command_is_refused(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], words: list[str]
) -> None:
    source = [*write_source(tmp_path / "raw", "integers"), "--out", str(tmp_path / "set")]
    assert "--pass needs --part K/N or --merge N" in error_of([*source, *words], capsys)


def test_parts_do_not_download(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = ["csv", "http://127.0.0.1:9/a.csv", "--out", str(tmp_path / "set"), *part("read", "1/2")]
    assert "a.csv: --part reads no URLs; download the file" in error_of(words, capsys)
