"""Ends every rank when one fails, and prints the first cause last.

A thread of each rank sends heartbeats with its progress to the rendezvous' key-value store, and looks for
failures of other ranks:

* a rank that raises an exception announces it;
* a rank that was killed is detected by the ranks of its host, or by its missing heartbeats;
* if no rank makes progress for the timeout, the rank with the least progress is assumed to hang.

The watchdog uses no collectives after its construction, because a failed rank makes them hang.
"""

import os
import signal
import socket
import sys
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from datetime import timedelta
from types import TracebackType
from typing import Any

import psutil
import torch

from longplay.distributed.runtime import collectives
from longplay.distributed.runtime.world import World

_INTERVAL_S = 0.5
_SILENCE_S = 30.0
_STARTING, _START_S = "starting", 180.0  # imports and the first engine can take a minute on a busy machine
_EXIT_S = 5.0
_FAILURE, _CLOSED, _WAITING = "failure", "closed", "waiting"
_COLLECTIVES = ("distributed_c10d.py", os.path.join("deepspeed", "comm", ""), str(collectives.__file__))
_BROKEN_CONNECTION = ("gloo", "nccl", "connection", "broken pipe", "timed out", "socket")

Heartbeat = Callable[[str], None]
"""Called with the work that starts now, whenever there is progress."""


def no_heartbeat(doing: str) -> None:
    """Do nothing; the heartbeat of code that runs without a watchdog."""


@dataclass(frozen=True)
class _Fault:
    """A failure that ends the run, and the rank to kill if it cannot exit by itself."""

    cause: str
    to_kill: int | None = None


@dataclass
class _Seen:
    """The last heartbeat of a rank, and its time of arrival by this process's monotonic clock."""

    text: str
    at: float


class Watchdog:
    """Watches all ranks from construction to `close`; a context manager. Collective.

    An exception that leaves the context is announced to the other ranks. If another rank failed first, the
    process instead exits without printing its exception, which is only a consequence.

    Args:
        timeout_s: if no rank makes progress for this long, the rank that is behind is assumed to hang.
    """

    def __init__(self, world: World, *, timeout_s: float) -> None:
        self.world, self._timeout_s = world, timeout_s
        self._silence_s = min(timeout_s, _SILENCE_S)
        self._progress, self._doing, self._rounds = 0, _STARTING, 0
        self._stop = threading.Event()
        self._thread: threading.Thread | None = None
        if world.world_size == 1:
            return
        mine = socket.gethostname(), os.getpid(), time.time_ns()
        processes = [mine] * world.world_size
        torch.distributed.all_gather_object(processes, mine)
        self._store = self._connect(f"longplay-watchdog-{processes[0]}")
        self._pids = {rank: pid for rank, (host, pid, _) in enumerate(processes) if host == mine[0]}
        self._seen: dict[int, _Seen] = {}
        self._total = _Seen("", time.monotonic())
        self._send_heartbeat()
        self._thread = threading.Thread(target=self._watch, name="longplay-watchdog", daemon=True)
        self._thread.start()

    def heartbeat(self, doing: str) -> None:
        """Record progress, and the work that starts now."""
        self._progress += 1
        self._doing = doing

    def close(self) -> None:
        """Stop watching, and announce that this rank sends no more heartbeats."""
        if self._thread is None:
            return
        self._stop.set()
        self._thread.join()
        self._thread = None
        try:
            self._store.set(self._key(self.world.rank), _CLOSED)
        except RuntimeError:
            pass  # rank 0, which holds the store, has exited already

    def __enter__(self) -> "Watchdog":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if error is None or self._thread is None:
            self.close()
            return
        text = f"{type(error).__name__}: {error}".lower()
        if isinstance(error, RuntimeError) and any(word in text for word in _BROKEN_CONNECTION):
            # Another rank is the cause: give the thread time to find it and to end this process.
            time.sleep(self._silence_s + 4 * _INTERVAL_S)
        self._stop.set()
        self._thread.join()
        self._thread = None
        if self._announce(f"rank {self.world.rank} failed") and self.world.world_size > 1:
            self._wait_for_others()
            return  # Python prints the exception
        _exit()

    # ------------------------------------------------------------------ the thread

    def _watch(self) -> None:
        while not self._stop.wait(_INTERVAL_S):
            try:
                self._send_heartbeat()
                if self._store.check([_FAILURE]):
                    self._exit_after_failure()
                fault = self._find_fault()
            except RuntimeError:  # the store ended with rank 0
                if self._stop.is_set():
                    return
                self._report("rank 0 was killed, or its node is down", first=True)
            else:
                if fault is not None:
                    first = self._announce(fault.cause)
                    # After the announcement: other ranks would announce the kill as the first failure.
                    if fault.to_kill is not None:
                        self._kill(fault.to_kill)
                    self._report(fault.cause, first=first)

    def _send_heartbeat(self) -> None:
        self._rounds += 1
        state = _WAITING if _in_collective() else "busy"
        self._store.set(self._key(self.world.rank), f"{self._rounds} {self._progress} {state} {self._doing}")

    def _find_fault(self) -> _Fault | None:
        """Return the first fault found in another rank, or None.

        Each rank checks the processes of its host; rank 0 also checks the heartbeats of all ranks.
        """
        ranks = range(self.world.world_size) if self.world.is_rank0 else self._pids
        now = time.monotonic()
        texts = {rank: self._store.get(self._key(rank)).decode() for rank in ranks if self._has_started(rank)}
        for rank, text in texts.items():
            if rank not in self._seen or self._seen[rank].text != text:
                self._seen[rank] = _Seen(text, now)
            if text == _CLOSED or rank == self.world.rank:
                continue
            if rank in self._pids and not _is_alive(self._pids[rank]):
                return _Fault(f"rank {rank} was killed, perhaps because memory ran out")
            if now - self._seen[rank].at > self._silence_s:
                return _Fault(
                    f"rank {rank} has sent no heartbeat for {self._silence_s:g} s: "
                    "it is stopped, or its node is unreachable",
                    to_kill=rank,
                )
        return self._find_hanging(texts, now) if self.world.is_rank0 else None

    def _find_hanging(self, texts: dict[int, str], now: float) -> _Fault | None:
        """Return the rank that is behind if no rank has made progress for the timeout, else None."""
        running = {rank: text.split(" ", 3) for rank, text in texts.items() if text != _CLOSED}
        if len(running) < self.world.world_size:
            return None
        progress = {rank: int(parts[1]) for rank, parts in running.items()}
        total = str(sum(progress.values()))
        if self._total.text != total:
            self._total = _Seen(total, now)
        starting = any(parts[3] == _STARTING for parts in running.values())
        allowed_s = max(self._timeout_s, _START_S) if starting else self._timeout_s
        if now - self._total.at <= allowed_s:
            return None
        least = min(progress.values())
        behind = [rank for rank in running if progress[rank] == least]
        busy = [rank for rank in behind if running[rank][2] != _WAITING]
        if len(busy) != 1 and len(behind) != 1:
            return _Fault(f"no rank made progress for {allowed_s:g} s while {running[behind[0]][3]}")
        culprit = busy[0] if len(busy) == 1 else behind[0]
        return _Fault(
            f"no rank made progress for {self._timeout_s:g} s: rank {culprit} hangs while "
            f"{running[culprit][3]}",
            to_kill=culprit,
        )

    def _kill(self, rank: int) -> None:
        """Kill another rank of this host."""
        if rank in self._pids and rank != self.world.rank:
            try:
                os.kill(self._pids[rank], signal.SIGKILL)
            except ProcessLookupError:
                pass

    def _announce(self, cause: str) -> bool:
        """Record `cause` as the run's failure unless one is recorded; return whether it was the first."""
        mine = f"{self.world.rank} {cause}"
        try:
            return self._store.compare_set(_FAILURE, "", mine).decode() == mine
        except RuntimeError:
            return True  # the store ended with rank 0

    def _report(self, cause: str, *, first: bool) -> None:
        """Exit. If this rank found the failure first, exit last and print the cause."""
        if first:
            self._wait_for_others()
            sys.stderr.write(f"longplay: error: {cause}\n")
        _exit()

    def _exit_after_failure(self) -> None:
        """Exit because another rank failed. Rank 0, which holds the store, exits after all but that rank."""
        self._store.set(f"left/{self.world.rank}", "1")
        if self.world.is_rank0:
            failed = int(self._store.get(_FAILURE).decode().split()[0])
            self._wait_for_others(but=failed)
            time.sleep(_INTERVAL_S)  # the failed rank still reads this rank's mark from the store
        _exit()

    def _wait_for_others(self, but: int | None = None) -> None:
        """Wait until every other rank has exited; kill those that take too long."""
        deadline = time.monotonic() + _EXIT_S
        others = [rank for rank in range(self.world.world_size) if rank not in (self.world.rank, but)]
        while others and time.monotonic() < deadline:
            try:
                others = [rank for rank in others if not self._store.check([f"left/{rank}"])]
            except RuntimeError:
                return
            others = [rank for rank in others if rank not in self._pids or _is_alive(self._pids[rank])]
            time.sleep(_INTERVAL_S / 5)
        for rank in others:
            self._kill(rank)

    # ------------------------------------------------------------------ the store

    def _connect(self, prefix: str) -> Any:
        """Open a separate connection: blocking calls on the process group's own would block the watchdog."""
        store = torch.distributed.TCPStore(  # pyright: ignore[reportPrivateImportUsage]  # it is documented
            os.environ["MASTER_ADDR"],
            int(os.environ["MASTER_PORT"]),
            is_master=False,
            wait_for_workers=False,
            timeout=timedelta(seconds=max(10.0, self._silence_s)),
        )
        return torch.distributed.PrefixStore(prefix, store)  # pyright: ignore[reportPrivateImportUsage]  # as above

    def _has_started(self, rank: int) -> bool:
        return self._store.check([self._key(rank)])

    @staticmethod
    def _key(rank: int) -> str:
        return f"rank/{rank}"


def _in_collective() -> bool:
    """Return whether the main thread is inside a collective."""
    frame = sys._current_frames().get(threading.main_thread().ident or 0)
    while frame is not None:
        if any(part in frame.f_code.co_filename for part in _COLLECTIVES):
            return True
        frame = frame.f_back
    return False


def _is_alive(pid: int) -> bool:
    """Return whether a process of this host runs; a zombie does not."""
    try:
        return psutil.Process(pid).status() not in (psutil.STATUS_ZOMBIE, psutil.STATUS_DEAD)
    except psutil.NoSuchProcess:
        return False


def _exit() -> None:
    """End this process at once, even while its main thread is blocked."""
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(1)
