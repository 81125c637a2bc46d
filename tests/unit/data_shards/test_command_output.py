"""No process of a command outlives its reader."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest

from longplay.data_shards.errors import PermanentError
from longplay.data_shards.storage import command_output
from longplay.data_shards.storage.command_output import CommandOutput

# A pipeline of three processes that never end, after the ids of two of them.
ENDLESS = "sleep 600 & echo $! $$; wait"


def alive(pids: list[int]) -> list[int]:
    found = []
    for pid in pids:
        try:
            if psutil.Process(pid).status() != psutil.STATUS_ZOMBIE:
                found.append(pid)
        except psutil.NoSuchProcess:
            continue
    return found


def wait_until_ended(pids: list[int]) -> None:
    deadline = time.monotonic() + 20
    while alive(pids):
        assert time.monotonic() < deadline, f"still running: {alive(pids)}"
        time.sleep(0.01)


def test_the_output_is_read_to_its_end() -> None:
    assert b"".join(CommandOutput(["sh", "-c", "printf a; printf b | cat"]).blocks()) == b"ab"


def test_a_command_that_fails_is_named_with_its_status() -> None:
    with pytest.raises(OSError, match="sh exited with status 7"):
        list(CommandOutput(["sh", "-c", "printf a; exit 7"]).blocks())


def test_closing_the_output_ends_the_command_and_what_it_started() -> None:
    blocks = CommandOutput(["sh", "-c", ENDLESS]).blocks()
    pids = [int(word) for word in next(blocks).split()]
    assert alive(pids) == pids
    blocks.close()  # pyright: ignore[reportAttributeAccessIssue] -- it is a generator
    wait_until_ended(pids)


def test_a_command_that_prints_nothing_is_ended(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(command_output, "SILENCE_S", 0.2)
    blocks = CommandOutput(["sh", "-c", ENDLESS]).blocks()
    pids = [int(word) for word in next(blocks).split()]
    with pytest.raises(PermanentError, match=r"sh has printed nothing for 0\.2 s"):
        next(blocks)
    wait_until_ended(pids)


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM, signal.SIGINT])
def test_a_command_ends_with_a_reader_that_is_killed(tmp_path: Path, number: int) -> None:
    script = f"""
from longplay.data_shards.storage.locations import read_whole
read_whole("pipe:sleep 600 & echo $! $$ > {tmp_path}/pids.new; mv {tmp_path}/pids.new {tmp_path}/pids; wait")
"""
    reader = subprocess.Popen(
        [sys.executable, "-c", script],
        stderr=subprocess.DEVNULL,
        preexec_fn=lambda: signal.signal(
            signal.SIGINT, signal.SIG_DFL
        ),  # ignored where the tests started with &
    )
    deadline = time.monotonic() + 60
    while not (tmp_path / "pids").exists():
        assert time.monotonic() < deadline
        assert reader.poll() is None
        time.sleep(0.01)
    pids = [int(word) for word in (tmp_path / "pids").read_text().split()]
    assert alive(pids) == pids
    os.kill(reader.pid, number)
    assert reader.wait(20) == -number
    wait_until_ended(pids)
