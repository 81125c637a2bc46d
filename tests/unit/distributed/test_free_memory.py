"""Free host memory is bounded by the limits of control groups, of both versions and of outer groups."""

from pathlib import Path
from types import SimpleNamespace

import pytest

from longplay.distributed.runtime import free_memory as module
from longplay.distributed.runtime.free_memory import free_memory
from longplay.distributed.runtime.memory import available_memory

GIB = 1 << 30
V1 = ("memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file")
V2 = ("memory.max", "memory.current", "inactive_file")


@pytest.fixture(autouse=True)
def machine(monkeypatch: pytest.MonkeyPatch) -> None:
    """A machine with 64 GiB of free memory."""
    monkeypatch.setattr(module.psutil, "virtual_memory", lambda: SimpleNamespace(available=64 * GIB))


def group(root: Path, lines: str) -> None:
    (root / "proc" / "self").mkdir(parents=True)
    (root / "proc" / "self" / "cgroup").write_text(lines)


def limit(folder: Path, names: tuple[str, str, str], limit: object, used: int, cached: int = 0) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    for name, content in zip(names, (limit, used, ""), strict=True):
        if name != names[2]:
            (folder / name).write_text(f"{content}\n")
    (folder / "memory.stat").write_text(f"anon 5\n{names[2]} {cached}\n")


@pytest.mark.parametrize("mount", ["sys/fs/cgroup", "sys/fs/cgroup/unified"])
def test_the_tightest_limit_of_the_chain_counts(tmp_path: Path, mount: str) -> None:
    group(tmp_path, "0::/slurm/job_1/step_0\n")
    top = tmp_path / mount
    limit(top / "slurm/job_1/step_0", V2, "max", GIB)
    limit(top / "slurm/job_1", V2, 8 * GIB, 3 * GIB, GIB)
    limit(top / "slurm", V2, 32 * GIB, 4 * GIB)
    assert free_memory(tmp_path) == (6 * GIB, True)


def test_the_first_version_counts_too(tmp_path: Path) -> None:
    group(tmp_path, "12:cpuset:/a\n5:cpu,cpuacct:/a\n4:memory:/docker/abc\n0::/\n")
    limit(tmp_path / "sys/fs/cgroup/memory/docker/abc", V1, 4 * GIB, GIB)
    limit(tmp_path / "sys/fs/cgroup/memory", V1, 2**63 - 4096, 9 * GIB)
    assert free_memory(tmp_path) == (3 * GIB, True)


def test_a_container_sees_its_own_group_as_the_root(tmp_path: Path) -> None:
    group(tmp_path, "0::/../../kubepods/pod1\n")
    limit(tmp_path / "sys/fs/cgroup", V2, 2 * GIB, 3 * GIB)
    assert free_memory(tmp_path) == (0, True)


@pytest.mark.parametrize("lines", ["", "0::/a\n", "nonsense\n"])
def test_without_a_limit_the_memory_of_the_machine_counts(tmp_path: Path, lines: str) -> None:
    group(tmp_path, lines)
    limit(tmp_path / "sys/fs/cgroup/a", V2, "max", GIB)
    assert free_memory(tmp_path) == (64 * GIB, False)
    assert free_memory(tmp_path / "gone") == (64 * GIB, False)


def test_the_limit_is_divided_among_the_ranks_of_a_machine(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("longplay.distributed.runtime.memory.free_memory", lambda: (8 * GIB, True))
    found, source = available_memory("cpu", 4)
    assert found is not None
    assert 2 * GIB < found < 8 * GIB
    assert source == "available under the limit of this job or container over 4 ranks"
