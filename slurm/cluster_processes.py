"""Ports of this host, and processes told from others that had the same number."""

import socket
from pathlib import Path


def free_ports(count: int) -> list[int]:
    sockets = [socket.socket() for _ in range(count)]
    for each in sockets:
        each.bind(("127.0.0.1", 0))
    ports = [each.getsockname()[1] for each in sockets]
    for each in sockets:
        each.close()
    return ports


def listens(port: int) -> bool:
    try:
        socket.create_connection(("127.0.0.1", port), 1).close()
    except OSError:
        return False
    return True


def _stat(pid: int) -> list[str]:
    """The fields of /proc/PID/stat after the program's name; empty where there is no such process."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return []


def start_time(pid: int) -> int:
    """Clock ticks from the host's start to the process's: a pid that comes again has another."""
    fields = _stat(pid)
    return int(fields[19]) if fields else 0


def is_running(pid: int, began: int) -> bool:
    fields = _stat(pid)
    return bool(fields) and fields[0] not in "ZX" and int(fields[19]) == began
