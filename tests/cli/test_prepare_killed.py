"""`longplay prepare` resumes after SIGKILL at random times and after a full disk."""

from __future__ import annotations

import random
import subprocess
import time
from multiprocessing.process import BaseProcess
from pathlib import Path

import numpy as np
import pytest
from support.ranks import FORK_SERVER

from longplay.data_shards.storage.dataset import Dataset
from longplay.launch.prepare import main

NUM_KILLS = 10
NAMED = ["--features", "device:categorical,price:float,day:categorical", "--where", "day <> 3"]


def prepare_in_small_parts(path: Path, out: Path) -> None:
    """Run `longplay prepare` with small blocks and buckets, so that a short run has many states."""
    from longplay.data_shards.preparation.options import WorkPlan
    from longplay.launch.prepare import main

    plan = WorkPlan(num_workers=2, block_bytes=20_000, num_buckets=16)
    WorkPlan.make = classmethod(lambda *_: plan)  # pyright: ignore[reportAttributeAccessIssue]
    options = ["--min-item-events", "5", "--min-user-events", "20", "--shards", "48"]
    format = "csv" if path.suffix == ".csv" else "lfm1b"
    raise SystemExit(
        main([format, str(path), "--out", str(out), *options, *(NAMED if format == "csv" else [])])
    )


def start(path: Path, out: Path) -> BaseProcess:
    process = FORK_SERVER.Process(target=prepare_in_small_parts, args=(path, out), daemon=True)
    process.start()
    return process


def listening_events(path: Path, num_events: int) -> None:
    rng = np.random.default_rng(0)
    columns = (rng.integers(0, high, num_events).tolist() for high in (300, 9000, 999))
    path.write_text(
        "".join(f"{user}\t1\t1\t{item}\t{time + 1}\n" for user, item, time in zip(*columns, strict=True))
    )


def named_events(path: Path, num_events: int) -> None:
    """Write events with strings as ids, features and unusable rows."""
    rng = np.random.default_rng(0)
    columns = (rng.integers(0, high, num_events).tolist() for high in (300, 3000, 999, 4, 50, 7))
    names, devices = ["" if item == 5 else f"B{item:x}" for item in range(3000)], ["tv", "web", "app", ""]
    rows = (
        f"user {user},{names[item]},{time},{devices[device]},{price / 4},{day}\n"
        for user, item, time, device, price, day in zip(*columns, strict=True)
    )
    path.write_text("user_id,item_id,timestamp,device,price,day\n" + "".join(rows))


def folder_bytes(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


@pytest.mark.parametrize("name", ["LFM-1b_LEs.txt", "named.csv"])
def test_output_is_bitwise_identical_after_ten_kills(tmp_path: Path, name: str) -> None:
    path, draws = tmp_path / name, random.Random(0)
    if path.suffix == ".csv":
        named_events(path, 30_000)
    else:
        listening_events(path, 100_000)
    start(path, tmp_path / "undisturbed").join(120)  # also starts the fork server
    began = time.monotonic()
    start(path, tmp_path / "again").join(120)
    whole_s = time.monotonic() - began
    expected = folder_bytes(tmp_path / "undisturbed")
    out, num_killed = tmp_path / "killed", 0
    for attempt in range(200):
        if num_killed == NUM_KILLS and out.exists():
            break
        if out.exists():
            assert folder_bytes(out) == expected
            out.rename(tmp_path / f"finished-{attempt}")
        process = start(path, out)
        process.join(draws.uniform(0.1, 0.8) * whole_s if num_killed < NUM_KILLS else 120)
        if process.is_alive():
            process.kill()
            num_killed += 1
        process.join()
        assert process.exitcode in (0, -9)
    assert num_killed == NUM_KILLS
    assert folder_bytes(out) == expected
    left = {entry.name for entry in tmp_path.iterdir() if not entry.name.startswith("finished-")}
    assert left == {name, "again", "killed", "undisturbed"}


@pytest.mark.parametrize(("size", "full"), [("16k", "names"), ("1M", "events")])
def test_after_a_full_disk_the_repeated_command_resumes(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], size: str, full: str
) -> None:
    path, small = tmp_path / ("LFM-1b_LEs.txt" if full == "events" else "named.csv"), tmp_path / "small"
    (listening_events if full == "events" else named_events)(path, 100_000)
    small.mkdir()
    mounted = subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={size}", "tmpfs", str(small)], check=False)
    if mounted.returncode:
        pytest.skip("needs permission to mount a small tmpfs")
    try:
        out = tmp_path / "set"
        argv = ["lfm1b" if full == "events" else "csv", str(path), "--out", str(out), "--scratch", str(small)]
        assert main(argv) == 2
        (line,) = capsys.readouterr().err.splitlines()
        assert "cannot be written (No space left on device" in line
        assert "; free disk space and repeat the command" in line
        assert not out.exists()
        subprocess.run(["mount", "-o", "remount,size=64M", str(small)], check=True)
        assert main(argv) == 0
        manifest = Dataset.open(out).manifest
        assert manifest.num_events + sum(manifest.rows_dropped.values()) == 100_000
        assert not list(small.iterdir())
    finally:
        subprocess.run(["umount", str(small)], check=True)
