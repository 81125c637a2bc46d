"""Ports of this host, and processes identified by pid and start time, because pids are reused."""

import socket
from pathlib import Path


def free_ports(count: int) -> list[int]:
    """Return `count` different TCP ports that are free now."""
    sockets = [socket.socket() for _ in range(count)]
    for each in sockets:
        each.bind(("127.0.0.1", 0))
    ports = [each.getsockname()[1] for each in sockets]
    for each in sockets:
        each.close()
    return ports


def is_listening(port: int) -> bool:
    """Return whether a server accepts connections on a TCP port of this host."""
    try:
        socket.create_connection(("127.0.0.1", port), 1).close()
    except OSError:
        return False
    return True


def _stat(pid: int) -> list[str]:
    """Return the fields of /proc/PID/stat after the program's name; [] if the process does not exist."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return []


def start_time(pid: int) -> int:
    """Return the start time of a process in clock ticks since boot; 0 if it does not exist."""
    fields = _stat(pid)
    return int(fields[19]) if fields else 0


def is_running(pid: int, began: int) -> bool:
    """Return whether the process that started at `began` (see `start_time`) runs; a zombie does not."""
    fields = _stat(pid)
    return bool(fields) and fields[0] not in "ZX" and int(fields[19]) == began
