"""`python slurm/local_cluster.py`: `up`, `status`, `down` and the error messages."""

import os
import re
import subprocess
import sys
from pathlib import Path

import local_cluster
import pytest
from cluster_processes import is_running
from local_cluster import ClusterConfig, ClusterError, LocalCluster, missing_requirement
from support.slurm_jobs import REPOSITORY


def cluster_command(*words: str) -> tuple[int, str]:
    command = [sys.executable, str(REPOSITORY / "slurm" / "local_cluster.py"), *words]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60)
    return done.returncode, done.stdout + done.stderr


def test_up_and_down_are_idempotent(tmp_path: Path) -> None:
    problem = missing_requirement(accounting=False)
    if problem:
        pytest.skip(problem)
    root = str(tmp_path / "cluster")
    assert cluster_command("status", root) == (1, f"no cluster was started in {root}\n")
    try:
        up = ("up", "--nodes", "1", "--gpus", "1", "--no-accounting", root)
        code, printed = cluster_command(*up)
        assert code == 0
        assert f"export SLURM_CONF={root}/slurm.conf" in printed
        daemons = LocalCluster(Path(root)).daemons.started()
        assert cluster_command(*up)[0] == 0
        assert LocalCluster(Path(root)).daemons.started() == daemons
        code, printed = cluster_command("status", root)
        assert code == 0
        assert re.search("slurmd node1 +running", printed)
        assert re.search(r"high +up +infinite +1 +idle +node1", printed)
    finally:
        code, printed = cluster_command("down", root)
    assert (code, printed) == (0, "stopped: munged, slurmctld, slurmd node1\n")
    assert cluster_command("down", root) == (0, f"no daemon of {root} was running\n")
    assert not [pid for pid, began in daemons.values() if is_running(pid, began)]


def test_missing_packages_are_reported(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(local_cluster, "which", lambda program: None)
    assert missing_requirement() == (
        "a local Slurm cluster needs more packages: apt-get install mariadb-server munge slurm-wlm slurmdbd"
    )


def test_missing_root_is_reported(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(local_cluster, "which", lambda program: program)
    monkeypatch.setattr(os, "geteuid", lambda: 1000)
    assert "needs root" in (missing_requirement() or "")


@pytest.mark.parametrize("name", ["with space", "x" * 100])
def test_a_path_that_slurm_cannot_use_is_rejected(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    monkeypatch.setattr(local_cluster, "missing_requirement", lambda **_: None)
    with pytest.raises(ClusterError, match=r"allows no path|too long"):
        LocalCluster(tmp_path / name).up()


def test_a_cluster_without_nodes_is_rejected() -> None:
    with pytest.raises(ClusterError, match="nodes=0"):
        ClusterConfig(nodes=0)
