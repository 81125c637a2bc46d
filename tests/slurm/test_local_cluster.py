"""`python slurm/local_cluster.py`: up, status and down as typed, and what it says where it cannot."""

import os
import re
import subprocess
import sys
from pathlib import Path

import local_cluster
import pytest
from local_cluster import ClusterConfig, ClusterError, LocalCluster, why_not
from support.slurm_jobs import REPOSITORY


def cluster_command(*words: str) -> tuple[int, str]:
    command = [sys.executable, str(REPOSITORY / "slurm" / "local_cluster.py"), *words]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60)
    return done.returncode, done.stdout + done.stderr


def test_up_twice_status_and_down_twice(tmp_path: Path) -> None:
    problem = why_not(accounting=False)
    if problem:
        pytest.skip(problem)
    root = str(tmp_path / "cluster")
    assert cluster_command("status", root) == (1, f"no cluster was started in {root}\n")
    try:
        up = ("up", "--nodes", "1", "--gpus", "1", "--no-accounting", root)
        code, said = cluster_command(*up)
        assert code == 0
        assert f"export SLURM_CONF={root}/slurm.conf" in said
        daemons = LocalCluster(Path(root))._daemons()
        assert cluster_command(*up)[0] == 0
        assert LocalCluster(Path(root))._daemons() == daemons
        code, said = cluster_command("status", root)
        assert code == 0
        assert re.search("slurmd node1 +runs", said)
        assert re.search(r"high +up +infinite +1 +idle +node1", said)
    finally:
        code, said = cluster_command("down", root)
    assert (code, said) == (0, "ended: munged, slurmctld, slurmd node1\n")
    assert cluster_command("down", root) == (0, f"nothing of {root} was running\n")
    assert not [pid for pid, began in daemons.values() if local_cluster.is_running(pid, began)]


def test_missing_packages_are_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(local_cluster, "which", lambda program: None)
    assert why_not() == (
        "a local Slurm cluster needs more packages: apt-get install mariadb-server munge slurm-wlm slurmdbd"
    )


def test_missing_rights_are_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(local_cluster, "which", lambda program: program)
    monkeypatch.setattr(os, "geteuid", lambda: 1000)
    assert "needs root" in (why_not() or "")


@pytest.mark.parametrize("name", ["with space", "x" * 100])
def test_a_path_that_slurm_cannot_have_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    monkeypatch.setattr(local_cluster, "why_not", lambda **_: None)
    with pytest.raises(ClusterError, match=r"cannot name a path|too long"):
        LocalCluster(tmp_path / name).up()


def test_a_shape_that_makes_no_sense_is_refused() -> None:
    with pytest.raises(ClusterError, match="nodes=0"):
        ClusterConfig(nodes=0)
