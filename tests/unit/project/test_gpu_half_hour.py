"""benchmarks/gpu/half_hour.sh names files that exist, runs every part, and writes its note."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

REPOSITORY = Path(__file__).resolve().parents[3]
FOLDER = REPOSITORY / "benchmarks" / "gpu"


def half_hour(*words: str, out: Path | None = None) -> subprocess.CompletedProcess[str]:
    environment = os.environ | {"PYTHON": sys.executable} | ({"OUT": str(out)} if out else {})
    command = ["bash", str(FOLDER / "half_hour.sh"), *words]
    return subprocess.run(command, env=environment, capture_output=True, text=True, timeout=120, check=False)


def test_every_command_names_existing_files_and_parts_and_is_described(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.syspath_prepend(REPOSITORY)
    from benchmarks.gpu.__main__ import PARTS

    commands = dict(line.split(": ", 1) for line in half_hour("--list").stdout.splitlines())
    for command in commands.values():
        for path in re.findall(r"(?:tests|benchmarks)/\S+", command):
            assert (REPOSITORY / path).exists(), path
        for module in re.findall(r"-m (benchmarks\.\S+)", command):
            place = REPOSITORY / module.replace(".", "/")
            assert place.is_dir() or place.with_suffix(".py").is_file(), module
    parts = [command.split()[3] for command in commands.values() if "-m benchmarks.gpu" in command]
    assert sorted(parts) == sorted(PARTS)
    first_cells = re.findall(r"^\| (`.*?) \|", (FOLDER / "README.md").read_text(), re.MULTILINE)
    described = re.findall(r"`([a-z-]+)`", " ".join(first_cells))
    assert described == list(commands)


def test_the_note_holds_each_command_its_output_and_its_exit_code(tmp_path: Path) -> None:
    done = half_hour("--small", "update", out=tmp_path)
    assert done.returncode == 0, (tmp_path / "note.md").read_text()
    note = (tmp_path / "note.md").read_text()
    assert "-m benchmarks.gpu --small --repeats 1 update" in note
    assert "Exit code 0 after " in note
    assert "update of 500 rows of 5,000 x 64: " in note
    assert "no step nosuch; there are: machine gpu-tests" in half_hour("nosuch").stderr
