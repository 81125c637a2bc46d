"""`slurm/prepare_array.sh` prepares by arrays of jobs, and writes the dataset that one process writes."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

from local_cluster import LocalCluster
from support.slurm_jobs import REPOSITORY, Job

from longplay.data_shards.generators.synthetic import SyntheticEvents
from longplay.launch.prepare import main

SCRIPT = REPOSITORY / "slurm" / "prepare_array.sh"


def write_events(path: Path) -> None:
    events = zip(*SyntheticEvents(users=50, items=100, events=2000).generate(), strict=True)
    path.write_text("".join(["user_id,item_id,timestamp\n", *(f"{u},{i},{t}\n" for u, i, t in events)]))


def submit(folder: Path, words: list[str], env: dict[str, str]) -> subprocess.CompletedProcess[str]:
    env = env | {"PYTHON": sys.executable, "LOGS": str(folder / "logs"), "CPUS": "1", "PARTS": "2"}
    return subprocess.run(
        [str(SCRIPT), *words], cwd=folder, env=env, capture_output=True, text=True, timeout=60, check=False
    )


def jobs(cluster: LocalCluster, folder: Path, printed: str) -> list[Job]:
    """Return the array and the merge of each pass, in order."""
    pairs = re.findall(r"longplay: (\w+): array (\d+), merge (\d+)", printed)
    assert [name for name, _, _ in pairs] == ["read", "sort", "write"]
    outputs = [(f"{name}-{array}_1", f"{name}-merge-{merge}") for name, array, merge in pairs]
    numbers = [(array, merge) for _, array, merge in pairs]
    return [
        Job(cluster, number, folder / "logs" / f"prepare-{output}.out")
        for pair, names in zip(numbers, outputs, strict=True)
        for number, output in zip(pair, names, strict=True)
    ]


def test_arrays_write_the_bytes_of_one_process(slurm_cluster: LocalCluster, tmp_path: Path) -> None:
    folder = tmp_path / "some folder"
    folder.mkdir()
    write_events(folder / "events.csv")
    words = ["csv", str(folder / "events.csv"), "--shards", "5", "--memory", "256MiB"]
    assert main([*words, "--out", str(folder / "one")]) == 0
    done = submit(folder, [*words, "--out", str(folder / "parts")], slurm_cluster.env)
    assert done.returncode == 0, done.stderr
    submitted = jobs(slurm_cluster, folder, done.stdout)
    last = submitted[-1]
    last.wait(lambda: last.state in ("COMPLETED", "FAILED", "CANCELLED"), "end", timeout_s=300)
    assert last.state == "COMPLETED", "\n".join(job.printed() for job in submitted)
    one, parts = ({path.name: path.read_bytes() for path in (folder / n).iterdir()} for n in ("one", "parts"))
    assert one == parts
    assert "part 1 of 2 is done" in submitted[0].printed()


def test_a_failed_part_cancels_the_jobs_that_wait(slurm_cluster: LocalCluster, tmp_path: Path) -> None:
    words = ["csv", str(tmp_path / "no.csv"), "--out", str(tmp_path / "set")]
    done = submit(tmp_path, words, slurm_cluster.env)
    assert done.returncode == 0, done.stderr
    submitted = jobs(slurm_cluster, tmp_path, done.stdout)
    last = submitted[-1]
    last.wait(lambda: last.state == "CANCELLED", "cancellation", timeout_s=120)
    assert "no.csv: no such file; check the path" in submitted[0].printed()
    assert not (tmp_path / "set").exists()


def test_faulty_settings_are_one_line(tmp_path: Path) -> None:
    done = submit(tmp_path, [], dict(os.environ))
    assert (done.returncode, done.stderr.count("\n")) == (2, 1)
    assert "pass the arguments of longplay prepare" in done.stderr
