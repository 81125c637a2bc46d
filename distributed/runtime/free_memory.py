"""The host memory that is free for this process, within the limits of its control groups.

Slurm's `--mem`, Docker and Kubernetes set such limits, which the machine's own free memory ignores.
"""

from collections.abc import Iterator
from pathlib import Path

import psutil

_MOUNTS_V2 = ("sys/fs/cgroup", "sys/fs/cgroup/unified")
_MOUNT_V1 = "sys/fs/cgroup/memory"


def free_memory(root: Path = Path("/")) -> tuple[int, bool]:
    """Return the free bytes, and whether the limit of a control group bounds them.

    Args:
        root: the folder with proc/ and sys/.
    """
    machine = psutil.virtual_memory().available
    free = min(_rooms(root), default=machine)
    return (free, True) if free < machine else (machine, False)


def _rooms(root: Path) -> Iterator[int]:
    """Yield the bytes left below the limit of each control group of this process, the outer ones included.

    Files in the page cache count as used, but the kernel frees them when memory is needed.
    """
    for mount, group, names in _groups(root):
        limit_name, used_name, cached_name = names
        for folder in (mount / group, *(mount / group).parents):
            if folder.is_relative_to(mount):
                limit, used = _number(folder / limit_name), _number(folder / used_name)
                if limit is not None and used is not None:
                    yield max(0, limit - used + _cached(folder / "memory.stat", cached_name))


def _groups(root: Path) -> Iterator[tuple[Path, str, tuple[str, str, str]]]:
    """Yield the mount, the path below it and the names of the files for each memory group of this process."""
    try:
        lines = (root / "proc/self/cgroup").read_text().splitlines()
    except OSError:
        return
    for line in lines:
        _, controllers, path = [*line.split(":", 2), "", "", ""][:3]
        if not path:
            continue
        group = path.strip("/").replace("../", "")  # of a container whose group is outside of its view
        if not controllers:
            for mount in _MOUNTS_V2:
                yield root / mount, group, ("memory.max", "memory.current", "inactive_file")
        elif "memory" in controllers.split(","):
            names = ("memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file")
            yield root / _MOUNT_V1, group, names


def _number(file: Path) -> int | None:
    """Return the number in a file; None if it holds no number, such as `max`, which means no limit."""
    try:
        return int(file.read_text())
    except (OSError, ValueError):
        return None


def _cached(file: Path, name: str) -> int:
    try:
        entries = dict(line.split() for line in file.read_text().splitlines())
        return int(entries.get(name, 0))
    except (OSError, ValueError):
        return 0
