"""Where the ranks of a command meet: the address of rank 0, and a free port on which they agree."""

import contextlib
import hashlib
import re
import socket
import sys
import time
from collections.abc import Mapping, Sequence

_PORTS = range(20000, 32000)  # below Linux's ephemeral ports
_NUM_CANDIDATES = 16
_REPLY_S = 5.0
_PAUSE_S = 0.1
_RECEIVED = "received"


def slurm_rendezvous(
    env: Mapping[str, str],
    *,
    rank: int,
    world_size: int,
    timeout_s: float,
    command: Sequence[str] | None = None,
) -> tuple[str, int]:
    """Return the address and the port at which the ranks of a command in a Slurm step meet. Collective.

    Several commands may run in one step: each has its own port, because their words differ.
    MASTER_ADDR and MASTER_PORT each replace the choice made here: the step's first node, and a port that is
    free there.

    Args:
        command: the words of the command, the same on its ranks; None = this process's.

    Raises:
        ValueError: the variables hold no address, or no port number.
        RuntimeError: ranks did not connect within `timeout_s`.
    """
    address = env.get("MASTER_ADDR") or first_host(
        env.get("SLURM_STEP_NODELIST") or env.get("SLURM_JOB_NODELIST", "")
    )
    if env.get("MASTER_PORT"):
        return address, read_port(env["MASTER_PORT"])
    job, step = int(env["SLURM_JOB_ID"]), int(env["SLURM_STEP_ID"])
    words = hashlib.sha256("\0".join(sys.argv if command is None else command).encode()).hexdigest()
    port = agree_on_port(
        address,
        name=f"{job}.{step}-{words[:16]}",
        first=job * 7 + step,
        rank=rank,
        world_size=world_size,
        timeout_s=timeout_s,
    )
    return address, port


def agree_on_port(
    address: str, *, name: str, first: int, rank: int, world_size: int, timeout_s: float
) -> int:
    """Return a port that is free on rank 0's host, the same on all ranks. Collective.

    Args:
        address: rank 0's host.
        name: a name that only the ranks of this command have.
        first: selects the ports from which rank 0 sends its choice. Commands with the same value are
            distinguished by `name`.

    Raises:
        RuntimeError: ranks did not connect within `timeout_s`.
    """
    candidates = [_PORTS[(first + 701 * number) % len(_PORTS)] for number in range(_NUM_CANDIDATES)]
    deadline = time.monotonic() + timeout_s
    greeting = f"longplay {name} "
    if rank == 0:
        return _serve_port(candidates, greeting, world_size, deadline)
    return _request_port(address, candidates, f"{greeting}{rank}", greeting, deadline)


def read_port(text: str) -> int:
    """Return MASTER_PORT as a number.

    Raises:
        ValueError: it is not a port number.
    """
    if not (text.isdecimal() and 0 < int(text) < 1 << 16):
        raise ValueError(f"MASTER_PORT={text}: is not a port; give a number from 1 to 65535, or unset it")
    return int(text)


def first_host(nodelist: str) -> str:
    """Return the first host of a Slurm node list: rack0_blade3 for `rack[0-63]_blade[3,5-41],login1`.

    Raises:
        ValueError: the list is empty.
    """
    match = re.match(r"(?:[^,\[]|\[[^\]]*\])+", nodelist)
    if not match:
        raise ValueError(f"SLURM_STEP_NODELIST={nodelist!r}: names no host; set MASTER_ADDR to rank 0's")
    return re.sub(r"\[([^\],-]*)[^\]]*\]", r"\1", match.group())


def free_port() -> int:
    """Return a TCP port that is free now on every interface."""
    with socket.socket() as sock:
        sock.bind(("", 0))
        return sock.getsockname()[1]


def _serve_port(candidates: Sequence[int], greeting: str, world_size: int, deadline: float) -> int:
    """Choose a free port and send it to every other rank, through the first candidate that is free."""
    missing = set(range(1, world_size))
    # The chosen port stays bound until all ranks have it, so that no other run gets it.
    with _listen(candidates, backlog=world_size) as server, socket.socket() as chosen:
        chosen.bind(("", 0))
        port = chosen.getsockname()[1]
        while missing:
            server.settimeout(max(0.01, deadline - time.monotonic()))
            try:
                connection, _ = server.accept()
            except TimeoutError:
                ranks = ", ".join(map(str, sorted(missing)[:8]))
                raise RuntimeError(f"of {world_size} ranks, these did not start in time: {ranks}") from None
            with connection, contextlib.suppress(OSError, ValueError):
                connection.settimeout(_REPLY_S)
                rank = int(_read_line(connection).removeprefix(greeting))  # ValueError: of another program
                connection.sendall(f"{greeting}{port}\n".encode())
                if _read_line(connection) == _RECEIVED:  # otherwise it timed out, and will connect again
                    missing.discard(rank)
    return port


def _request_port(
    address: str, candidates: Sequence[int], request: str, greeting: str, deadline: float
) -> int:
    """Return the port that rank 0 has chosen; other programs may listen on the candidates too."""
    problem = ""
    while time.monotonic() < deadline:
        for candidate in candidates:
            try:
                with socket.create_connection((address, candidate), timeout=_REPLY_S) as connection:
                    connection.sendall(f"{request}\n".encode())
                    port = int(_read_line(connection).removeprefix(greeting))
                    connection.sendall(f"{_RECEIVED}\n".encode())
                    return port
            except (OSError, ValueError) as error:
                problem = str(error)
        time.sleep(_PAUSE_S)
    raise RuntimeError(
        f"rank 0 did not respond at {address} in time ({problem}); if it runs elsewhere, set MASTER_ADDR; "
        "all ranks need the same command"
    )


def _listen(candidates: Sequence[int], *, backlog: int) -> socket.socket:
    """Listen on the first free candidate, on every interface."""
    families = [socket.AF_INET6, socket.AF_INET] if socket.has_dualstack_ipv6() else [socket.AF_INET]
    for candidate in candidates:
        for family in families:  # IPv6 may be compiled in and disabled
            with contextlib.suppress(OSError):
                dual = family == socket.AF_INET6
                return socket.create_server(
                    ("", candidate), family=family, backlog=backlog, dualstack_ipv6=dual
                )
    raise RuntimeError(f"no free port among {', '.join(map(str, candidates))}; set MASTER_PORT to a free one")


def _read_line(connection: socket.socket) -> str:
    """Return a line of at most 200 bytes without its end."""
    with connection.makefile("rb") as file:
        return file.readline(200).decode(errors="replace").rstrip("\n")
