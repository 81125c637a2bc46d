"""`longplay inspect` from the command line: output, figure and exit codes."""

from __future__ import annotations

import dataclasses
import json
import subprocess
import sys
from pathlib import Path

import pytest

from longplay.data_shards.audit.audit import audit_dataset
from longplay.data_shards.audit.findings import findings
from longplay.data_shards.storage.dataset import Dataset
from longplay.launch import inspect_dataset, prepare
from longplay.launch.cli import main
from longplay.launch.reports import inspection_plot

PNG_SIGNATURE = b"\x89PNG\r\n\x1a\n"
EVENTS = "user_id,item_id,timestamp\n" + "".join(
    f"{user},{item},{item * 2}\n" for user in range(30) for item in range(user % 7 + 1)
)


@pytest.fixture
def folder(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> Path:
    (tmp_path / "events.csv").write_text(EVENTS)
    assert prepare.main(["csv", str(tmp_path / "events.csv"), "--out", str(tmp_path / "set")]) == 0
    capsys.readouterr()
    return tmp_path / "set"


def test_the_text_describes_the_dataset(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["inspect", str(folder)]) == 0
    printed, errors = capsys.readouterr()
    assert errors == ""
    dataset = Dataset.open(folder)
    rows = [line.split() for line in printed.splitlines()]
    for row in (
        ["dataset", dataset.dataset_id],
        ["format", "csv"],
        ["path", str(folder.parent / "events.csv")],
        ["rows", "in", f"{EVENTS.count(chr(10)) - 1}"],
        ["dropped,", "user_too_short", "5"],
        ["events", f"{dataset.num_events}"],
        ["users", "25"],
        ["items", "7"],
        ["times", "0", "to", "12"],
        ["min", "2"],
        ["50%", "4"],
        ["max", "7"],
        ["items", "with", "one", "event", "0"],
        ["shards", f"{dataset.num_shards}"],
        ["figure:", str(folder / "inspect.png")],
    ):
        assert row in rows


def test_stdout_contains_only_json(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["inspect", str(folder), "--json", "--verify"]) == 0
    printed, errors = capsys.readouterr()
    content = json.loads(printed)
    assert content["dataset_id"] == Dataset.open(folder).dataset_id
    assert content["rows_dropped"] == {"user_too_short": 5}
    assert content["lengths"]["quantiles"]["50%"] == 4
    assert content["verified"] is True
    assert errors == f"figure: {folder / 'inspect.png'}\n"


def test_the_figure_is_written_to_the_given_file(folder: Path, tmp_path: Path) -> None:
    assert main(["inspect", str(folder), "--png", str(tmp_path / "a.png")]) == 0
    assert (tmp_path / "a.png").read_bytes().startswith(PNG_SIGNATURE)
    assert not (folder / "inspect.png").exists()


def test_the_figure_does_not_change_the_dataset(folder: Path) -> None:
    before = Dataset.open(folder).dataset_id
    assert main(["inspect", str(folder)]) == 0
    assert (folder / "inspect.png").read_bytes().startswith(PNG_SIGNATURE)
    assert Dataset.open(folder).dataset_id == before
    assert main(["inspect", str(folder), "--verify"]) == 0
    again = ["csv", str(folder.parent / "events.csv"), "--out", str(folder), "--overwrite"]
    assert prepare.main(again) == 0
    assert Dataset.open(folder).dataset_id == before
    assert not (folder / "inspect.png").exists()


def read_only(*_: object) -> None:
    raise PermissionError(13, "Permission denied", "inspect.png")


def test_in_a_read_only_folder_the_figure_is_skipped_with_a_message(
    folder: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(inspect_dataset, "draw", read_only)
    assert main(["inspect", str(folder)]) == 0
    last = capsys.readouterr().out.splitlines()[-1]
    assert last == (
        f"no figure: {folder / 'inspect.png'} cannot be written (Permission denied); choose a file with --png"
    )


def test_an_unwritable_figure_file_is_an_error_if_the_user_chose_it(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["inspect", str(folder), "--png", str(tmp_path / "none" / "a.png")]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith(f"longplay: error: {tmp_path / 'none' / 'a.png'}: No such file")


def test_verify_prints_every_problem_and_exits_with_1(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (folder / "shard-000000.tar").unlink()
    content = bytearray((folder / "shard-000001.tar").read_bytes())
    content[600] ^= 1
    (folder / "shard-000001.tar").write_bytes(content)
    assert main(["inspect", str(folder), "--verify"]) == 1
    printed = capsys.readouterr().out.splitlines()
    assert printed[0] == "shard-000000.tar: is missing"
    assert printed[1] == "shard-000001.tar: content does not match its checksum in the manifest"
    assert not any(line.startswith(("events", "verified")) for line in printed)
    assert main(["inspect", str(folder), "--verify", "--json"]) == 1
    assert json.loads(capsys.readouterr().out) == {"problems": printed}


def test_verify_confirms_an_intact_dataset(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["inspect", str(folder), "--verify"]) == 0
    assert "verified: all checksums and counts match the content\n" in capsys.readouterr().out


def test_a_missing_shard_is_a_one_line_error_without_verify(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (folder / "shard-000000.tar").unlink()
    assert main(["inspect", str(folder)]) == 2
    printed, errors = capsys.readouterr()
    assert printed == ""
    assert errors.startswith(f"longplay: error: {folder / 'shard-000000.tar'}: shard is missing")


def test_the_audit_follows_the_description(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["inspect", str(folder), "--audit"]) == 0
    printed, errors = capsys.readouterr()
    assert errors == ""
    lines = printed.splitlines()
    audit = audit_dataset(Dataset.open(folder))
    marked = [line.split("  ")[0][2:].strip() for line in lines if line.startswith("! ")]
    problems = [line for line in findings(audit) if line.problem]
    assert marked == [line.name for line in problems] != []
    assert all(any(line.value in shown and line.text in shown for shown in lines) for line in findings(audit))
    assert f"problems: {len(problems)} of {len(findings(audit))}" in lines
    assert lines[-2].startswith("baselines: trained on 25 users; tested on 20, ranking")


def test_the_json_contains_the_audit(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["inspect", str(folder), "--audit", "--json"]) == 0
    content = json.loads(capsys.readouterr().out)["audit"]
    audit = audit_dataset(Dataset.open(folder))
    assert content.pop("findings") == [dataclasses.asdict(line) for line in findings(audit)]
    assert content == dataclasses.asdict(audit)


def test_a_url_is_refused(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["inspect", "https://host/data"]) == 2
    assert "inspect reads folders, not URLs" in capsys.readouterr().err


@pytest.mark.parametrize("options", [[], ["--verify"]])
def test_a_folder_without_a_dataset_is_refused(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], options: list[str]
) -> None:
    assert main(["inspect", str(tmp_path), *options]) == 2
    assert "not a prepared dataset" in capsys.readouterr().err


@pytest.mark.parametrize("lengths", [[2, 2], [2, 5000]], ids=["all equal", "far apart"])
def test_the_figure_is_drawn_for_any_history_lengths(tmp_path: Path, lengths: list[int]) -> None:
    rows = (f"{user},{n % 3},{n}\n" for user, length in enumerate(lengths) for n in range(length))
    (tmp_path / "events.csv").write_text("user_id,item_id,timestamp\n" + "".join(rows))
    assert prepare.main(["csv", str(tmp_path / "events.csv"), "--out", str(tmp_path / "set")]) == 0
    dataset = Dataset.open(tmp_path / "set")
    found = inspect_dataset.inspect_dataset(dataset)
    inspection_plot.draw(dataset, found, tmp_path / "a.png")
    assert (tmp_path / "a.png").read_bytes().startswith(PNG_SIGNATURE)


def test_inspect_imports_neither_deepspeed_nor_pyplot() -> None:
    code = "import sys; from longplay.launch.cli import build_parser; build_parser('inspect'); "
    code += "sys.exit('deepspeed' in sys.modules or 'matplotlib.pyplot' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False, timeout=60).returncode == 0
