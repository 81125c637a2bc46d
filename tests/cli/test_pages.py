"""Run the code of the pages that show how to extend Longplay, and the code of the notebook."""

import functools
import json
import os
import re
import shlex
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from support.commands import Command, enter
from support.datasets import REPOSITORY
from support.ranks import FORK_SERVER

pytestmark = pytest.mark.slow
GUIDES = REPOSITORY / "docs" / "guides"
SMALL = shlex.split(
    "--context_length 20 --encoder.d_model 16 --data.rows_per_step 12 "
    "--train.max_steps 2 --train.warmup_steps 1"
)


def write_modules(page: Path, folder: Path) -> list[str]:
    """Write the page's code blocks that have a file name; return the names."""
    found = re.findall(r'^```python title="(.+?)"\n(.*?)^```', page.read_text(), re.MULTILINE | re.DOTALL)
    for name, code in found:
        (folder / name).write_text(code)
    return [name for name, _ in found]


def commands(page: Path) -> list[list[str]]:
    """Return the page's commands that import its modules."""
    blocks = re.findall(r"^```([^\n]*)\n(.*?)^```", page.read_text(), re.MULTILINE | re.DOTALL)
    plain = [block.replace("\\\n", " ") for info, block in blocks if not info]
    lines = [shlex.split(line) for block in plain for line in block.splitlines()]
    return [words for words in lines if "--import" in words]


def longplay(words: list[str], folder: Path) -> str:
    command = Command(words, folder / "log", fault=functools.partial(enter, folder))
    assert command.wait() == 0, f"{shlex.join(words)}:\n{(folder / 'log').read_text()}"
    return (folder / "log").read_text()


def run_tests(names: list[str], folder: Path) -> None:
    enter(folder, 0)
    os._exit(pytest.main(["-q", "-p", "no:cacheprovider", *names]))


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the dataset, the run and the events that the pages' commands name."""
    folder = tmp_path_factory.mktemp("pages")
    plays = "".join(f"{1_700_000_000 + 7 * n}|{n % 30}|{n * n % 41}\n" for n in range(600))
    (folder / "plays.txt").write_text(plays)
    longplay(
        shlex.split("prepare synthetic --users 40 --items 60 --events 1200 --out data/ml1m --scratch ."),
        folder,
    )
    longplay(["train", "sasrec", "--data", "data/ml1m", "--run", "runs/ml1m", *SMALL], folder)
    return folder


@pytest.mark.parametrize("name", ["add_encoder", "add_parts"])
def test_the_modules_of_a_page_work_with_its_commands(name: str, folder: Path) -> None:
    page = GUIDES / f"{name}.md"
    tests = [module for module in write_modules(page, folder) if module.startswith("test_")]
    for words in commands(page):
        longplay([*words[1:], *(SMALL if words[1] == "train" else [])], folder)
    assert len(tests) == (name == "add_encoder")
    if tests:
        process = FORK_SERVER.Process(target=run_tests, args=(tests, folder))
        process.start()
        process.join(120)
        assert process.exitcode == 0


@pytest.mark.filterwarnings("ignore:FigureCanvasAgg is non-interactive")
def test_the_notebook_runs_and_its_outputs_contain_no_local_paths(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    notebook = json.loads((REPOSITORY / "examples" / "quickstart.ipynb").read_text())
    code = [cell for cell in notebook["cells"] if cell["cell_type"] == "code"]
    program = "\n\n".join("".join(cell["source"]) for cell in code)
    assert "--events 60000" in program

    run = subprocess.run

    def run_forked(words: list[str], **settings: Any) -> subprocess.CompletedProcess[str]:
        """Run `longplay` without a new interpreter, whose start takes seconds."""
        if words[:3] != [sys.executable, "-m", "longplay.launch.cli"]:
            return run(words, **settings)
        return subprocess.CompletedProcess(words, 0, longplay(words[3:], tmp_path))

    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(subprocess, "run", run_forked)
    exec(program.replace("--events 60000", "--events 6000"), {})
    assert all(cell["execution_count"] for cell in code)
    outputs = json.dumps([cell["outputs"] for cell in code])
    assert re.search(r"[^\w.](/home|/root|/tmp|/Users|/opt)/", outputs) is None
