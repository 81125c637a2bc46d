"""Start, record in daemons.json, and stop the daemons of a local cluster."""

import json
import os
import signal
import subprocess
import time
from collections.abc import Mapping
from pathlib import Path

from cluster_processes import is_running, start_time

_STOP_ORDER = ("slurmctld", "slurmd", "slurmdbd", "mariadbd", "munged")


class Daemons:
    """The daemons of the cluster in `root`, whichever process started them.

    Args:
        bound: whether the daemons that this object starts end with the thread that started them.
    """

    def __init__(self, root: Path, *, bound: bool) -> None:
        self.root, self.bound = root, bound
        self._record = root / "daemons.json"
        self._children: list[subprocess.Popen[bytes]] = []

    def start(self, name: str, *words: str, env: Mapping[str, str]) -> None:
        """Start a daemon; its output goes to log/NAME.out."""
        # unshare blocks SIGTERM while it waits, so a node ends by SIGKILL, which --kill-child passes on.
        death = "KILL" if name.startswith("slurmd ") else "TERM"
        prefix = ["setpriv", "--pdeathsig", death] if self.bound else []
        with open(self.root / "log" / f"{name.replace(' ', '-')}.out", "ab") as log:
            child = subprocess.Popen(
                [*prefix, *words],
                env=env,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                start_new_session=True,
                cwd=self.root,
            )
        self._children.append(child)
        started = self.started() | {name: (child.pid, start_time(child.pid))}
        self._record.write_text(json.dumps(started))

    def started(self) -> dict[str, tuple[int, int]]:
        """Return process id and start time of each daemon, in the order of their start."""
        if not self._record.exists():
            return {}
        return {name: (pid, began) for name, (pid, began) in json.loads(self._record.read_text()).items()}

    def running(self) -> dict[str, bool]:
        """Return whether each daemon runs, in the order of their start."""
        return {name: is_running(pid, began) for name, (pid, began) in self.started().items()}

    def stop(self, *, grace_s: float) -> None:
        """Stop every daemon; SIGKILL those of a kind that have not ended after `grace_s` seconds."""
        daemons = self.started()
        for kind in _STOP_ORDER:
            group = [daemon for name, daemon in daemons.items() if name.split()[0] == kind]
            _signal(group, signal.SIGKILL if kind == "slurmd" else signal.SIGTERM)
            deadline = time.monotonic() + grace_s
            while any(is_running(pid, began) for pid, began in group):
                if time.monotonic() > deadline:
                    _signal(group, signal.SIGKILL)
                time.sleep(0.02)
        for child in self._children:
            child.wait()
        self._children.clear()
        self._record.unlink(missing_ok=True)

    def kill(self, name: str) -> None:
        """Kill one daemon, as a crash would."""
        pid, began = self.started()[name]
        os.kill(pid, signal.SIGKILL)
        while is_running(pid, began):
            time.sleep(0.01)


def _signal(daemons: list[tuple[int, int]], number: int) -> None:
    for pid, began in daemons:
        if is_running(pid, began):
            os.kill(pid, number)
