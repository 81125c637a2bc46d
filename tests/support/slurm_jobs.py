"""Submit, watch and interrupt jobs on the cluster of the fixture `slurm_cluster`."""

import contextlib
import os
import subprocess
import time
from collections.abc import Callable, Mapping
from pathlib import Path

from local_cluster import LocalCluster

REPOSITORY = Path(__file__).resolve().parents[2]
ENDED = ("COMPLETED", "FAILED", "CANCELLED", "TIMEOUT", "NODE_FAIL")


class Job:
    """A batch job. `output` is the file that receives its output."""

    def __init__(self, cluster: LocalCluster, number: str, output: Path) -> None:
        self.cluster, self.number, self.output = cluster, number, output

    @property
    def state(self) -> str:
        return self.cluster.call(
            "squeue", "--noheader", "--states=all", "--format=%T", "--jobs", self.number
        ).strip()

    def update(self, **settings: object) -> None:
        words = [f"{name}={value}" for name, value in settings.items()]
        self.cluster.call("scontrol", "update", f"JobId={self.number}", *words)

    def printed(self) -> str:
        return self.output.read_text() if self.output.exists() else ""

    def wait(self, reached: Callable[[], bool], what: str, timeout_s: float = 90.0) -> None:
        """Wait until `reached()` is true. It must not raise.

        Raises:
            AssertionError: the timeout expired; the message has `what` and the job's output.
        """
        deadline = time.monotonic() + timeout_s
        while not reached():
            assert time.monotonic() < deadline, f"no {what}: {self.state}\n{self.printed()}"
            time.sleep(0.2)

    def wait_for(self, *states: str) -> str:
        """Wait for one of the states and return it."""
        self.wait(lambda: self.state in states, " or ".join(states))
        return self.state

    def wait_for_end(self) -> str:
        """Wait until the job and its processes have ended. Return the final state."""
        state = self.wait_for(*ENDED)
        self.wait(lambda: not self.processes(), "end of its processes")
        return state

    def processes(self, *words: str) -> list[int]:
        """Return the job's processes on all nodes whose command line contains all `words`."""
        mark = f"SLURM_JOB_ID={self.number}".encode()
        conf = f"SLURM_CONF={self.cluster.conf}".encode()
        found = []
        for folder in Path("/proc").glob("[0-9]*"):
            try:
                variables = (folder / "environ").read_bytes().split(b"\0")
                command = (folder / "cmdline").read_bytes().decode(errors="replace").split("\0")
            except OSError:
                continue
            if mark in variables and conf in variables and set(words) <= set(command):
                found.append(int(folder.name))
        return found


def submit(
    cluster: LocalCluster,
    folder: Path,
    script: Path,
    *words: str,
    options: tuple[str, ...] = (),
    variables: Mapping[str, object] | None = None,
) -> Job:
    """Submit a script from `folder`. Its output is written to the same folder.

    Raises:
        AssertionError: sbatch failed.
    """
    folder.mkdir(parents=True, exist_ok=True)
    done = sbatch(cluster, folder, *options, str(script), *words, variables=variables)
    assert done.returncode == 0, done.stderr
    number = done.stdout.strip()
    return Job(cluster, number, folder / f"job-{number}.out")


def sbatch(
    cluster: LocalCluster, folder: Path, *words: str, variables: Mapping[str, object] | None = None
) -> subprocess.CompletedProcess[str]:
    """Run sbatch in `folder`. Of the variables that train.sh reads, pass only those in `variables`."""
    env = {
        name: value for name, value in cluster.env.items() if name not in ("DATA", "RUN", "RECIPE", "VENV")
    }
    env |= {name: str(value) for name, value in (variables or {}).items()}
    return subprocess.run(
        ["sbatch", "--parsable", "--output=job-%j.out", *words],
        cwd=folder,
        env=env,
        capture_output=True,
        text=True,
        timeout=60,
    )


def signal_all(pids: list[int], number: int) -> None:
    for pid in pids:
        with contextlib.suppress(ProcessLookupError):  # may have exited after an earlier signal
            os.kill(pid, number)
