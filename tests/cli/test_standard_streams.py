"""Standard streams may be closed or full: a command works, or prints one line and exits with 2."""

import subprocess
import sys
from pathlib import Path

import pytest

COMMAND = f"{sys.executable} -m longplay.launch.cli"


def shell(line: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(["bash", "-c", line], capture_output=True, text=True, check=False, timeout=240)


@pytest.mark.parametrize("words", ["config mambarec", "--version"])
def test_a_command_works_when_stdout_is_closed(words: str) -> None:
    ended = shell(f"{COMMAND} {words} >&-")
    assert (ended.returncode, ended.stderr) == (0, "")


def test_an_error_is_an_exit_code_when_all_streams_are_closed() -> None:
    assert shell(f"{COMMAND} unknown <&- >&- 2>&-").returncode == 2


def test_files_do_not_take_the_numbers_of_closed_streams(tmp_path: Path) -> None:
    code = (
        "from longplay.launch.console.standard_streams import open_closed_streams; open_closed_streams(); "
        f"import os; file = open({str(tmp_path / 'x')!r}, 'w'); os.write(1, b'text'); file.close(); "
        f"assert file.name and not os.path.getsize({str(tmp_path / 'x')!r})"
    )
    assert shell(f'{sys.executable} -c "{code}" <&- >&- 2>&-').returncode == 0


@pytest.mark.parametrize(
    "words", ["--version", "--print-completion bash"]
)  # the second is longer than a buffer
def test_a_full_stdout_is_named(words: str) -> None:
    ended = shell(f"{COMMAND} {words} >/dev/full")
    assert ended.returncode == 2
    assert ended.stderr.startswith("longplay: error: standard output: No space left on device; free disk")
    assert ended.stderr.count("\n") == 1


def test_a_full_stderr_does_not_change_the_exit_code() -> None:
    assert shell(f"{COMMAND} --version >/dev/full 2>&1").returncode == 2
    assert shell(f"{COMMAND} unknown 2>/dev/full").returncode == 2
