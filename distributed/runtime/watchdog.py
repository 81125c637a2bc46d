"""Ends every rank when one fails, and lets the first cause be the last line on the terminal.

A thread of each rank tells the others through the rendezvous' key-value store that the rank lives and how
far it is, and looks for what went wrong elsewhere: a rank that raised says so itself; one that was killed is
missed by its neighbours; one that hangs is behind the others when nothing has moved for the timeout. No
collective is used, as those are what a failed rank leaves hanging.
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

import torch

from longplay.distributed.runtime.world import World
from longplay.distributed.zero.deepspeed_env import comm

_INTERVAL_S = 0.5
_SILENCE_S = 30.0
_STARTING, _START_S = "starting", 180.0  # imports and the first engine alone can take a busy machine a minute
_LAST_WORDS_S = 5.0
_FAILURE, _CLOSED, _WAITING = "failure", "closed", "waiting"
_COLLECTIVES = (
    "distributed_c10d.py",
    os.path.join("deepspeed", "comm", ""),
    os.path.join("distributed", "collectives.py"),
)
_BROKEN_CONNECTION = ("gloo", "nccl", "connection", "broken pipe", "timed out", "socket")

Heartbeat = Callable[[str], None]
"""Called with what is being done whenever something has moved."""


def no_heartbeat(doing: str) -> None:
    """For those whom nobody watches."""


@dataclass(frozen=True)
class _Fault:
    """What ends the run; and the rank that cannot end itself."""

    cause: str
    to_end: int | None = None


@dataclass
class _Seen:
    """What was last heard of a rank, and when that changed, by our clock."""

    text: str
    at: float


class Watchdog:
    """Watches the ranks from construction to `close`; a context manager. Building it is collective.

    Leaving the context by an exception tells the others first. If another rank's failure came before, this
    process ends there and then without a word, as the cause is not its own.

    Args:
        timeout_s: without progress of any rank for so long, the one that is behind is taken for hanging.
    """

    def __init__(self, world: World, *, timeout_s: float) -> None:
        self.world, self._timeout_s = world, timeout_s
        self._silence_s = min(timeout_s, _SILENCE_S)
        self._moves, self._doing, self._rounds = 0, _STARTING, 0
        self._stop = threading.Event()
        self._thread: threading.Thread | None = None
        if world.world_size == 1:
            return
        nonce = torch.frombuffer(bytearray(os.urandom(8)), dtype=torch.int64).to(world.device)
        comm.broadcast(nonce, 0)
        self._store = self._connect(int(nonce))
        places = [""] * world.world_size
        torch.distributed.all_gather_object(places, f"{socket.gethostname()} {os.getpid()}")
        here = socket.gethostname()
        self._pids = {r: int(place.split()[1]) for r, place in enumerate(places) if place.split()[0] == here}
        self._seen: dict[int, _Seen] = {}
        self._tell()
        self._thread = threading.Thread(target=self._watch, name="longplay-watchdog", daemon=True)
        self._thread.start()

    def heartbeat(self, doing: str) -> None:
        """Note that something has moved, and what comes next."""
        self._moves += 1
        self._doing = doing

    def close(self) -> None:
        """Stop watching and being watched."""
        if self._thread is None:
            return
        self._stop.set()
        self._thread.join()
        self._thread = None
        try:
            self._store.set(self._key(self.world.rank), _CLOSED)
        except RuntimeError:
            pass  # rank 0, which holds the store, has left already

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
            time.sleep(
                self._silence_s + 4 * _INTERVAL_S
            )  # the thread finds out whose fault it is, and ends us
        self._stop.set()
        self._thread.join()
        self._thread = None
        if self._announce(f"rank {self.world.rank} failed") and self.world.world_size > 1:
            self._wait_for_others()
            return  # the exception goes on to the terminal
        _leave()

    # ------------------------------------------------------------------ the thread

    def _watch(self) -> None:
        while not self._stop.wait(_INTERVAL_S):
            try:
                self._tell()
                if self._store.check([_FAILURE]):
                    self._make_way()
                fault = self._look_around()
            except RuntimeError:  # the store went away with its holder
                if self._stop.is_set():
                    return
                self._report("rank 0 ended without a word: it was killed, or its node is gone", primary=True)
            else:
                if fault is not None:
                    primary = self._announce(fault.cause)
                    if fault.to_end is not None:  # only now, or another rank would announce its death
                        self._end(fault.to_end)
                    self._report(fault.cause, primary=primary)

    def _tell(self) -> None:
        self._rounds += 1
        state = _WAITING if _waits_for_others() else "busy"
        self._store.set(self._key(self.world.rank), f"{self._rounds} {self._moves} {state} {self._doing}")

    def _look_around(self) -> _Fault | None:
        """What is wrong with a rank, if anything: the dead nearby on every rank, all else on rank 0."""
        ranks = range(self.world.world_size) if self.world.is_rank0 else self._pids
        now = time.monotonic()
        texts = {rank: self._store.get(self._key(rank)).decode() for rank in ranks if self._known(rank)}
        for rank, text in texts.items():
            if rank not in self._seen or self._seen[rank].text != text:
                self._seen[rank] = _Seen(text, now)
            if text == _CLOSED or rank == self.world.rank:
                continue
            if rank in self._pids and not _lives(self._pids[rank]):
                return _Fault(f"rank {rank} ended without a word: it was killed, perhaps for want of memory")
            if now - self._seen[rank].at > self._silence_s:
                return _Fault(
                    f"rank {rank} has not been heard of for {self._silence_s:g} s: it is stopped or cut off",
                    to_end=rank,
                )
        return self._who_hangs(texts, now) if self.world.is_rank0 else None

    def _who_hangs(self, texts: dict[int, str], now: float) -> _Fault | None:
        """The rank that is behind when no rank has moved for the timeout."""
        running = {rank: text.split(" ", 3) for rank, text in texts.items() if text != _CLOSED}
        if len(running) < self.world.world_size:
            return None
        moves = {rank: int(parts[1]) for rank, parts in running.items()}
        total = str(sum(moves.values()))
        if _ALL not in self._seen or self._seen[_ALL].text != total:
            self._seen[_ALL] = _Seen(total, now)
        starting = any(parts[3] == _STARTING for parts in running.values())
        allowed_s = max(self._timeout_s, _START_S) if starting else self._timeout_s
        if now - self._seen[_ALL].at <= allowed_s:
            return None
        least = min(moves.values())
        behind = [rank for rank in running if moves[rank] == least]
        busy = [rank for rank in behind if running[rank][2] != _WAITING]
        if len(busy) != 1 and len(behind) != 1:
            return _Fault(f"nothing has moved for {allowed_s:g} s while {running[behind[0]][3]}")
        culprit = busy[0] if len(busy) == 1 else behind[0]
        return _Fault(
            f"nothing has moved for {self._timeout_s:g} s: rank {culprit} hangs while {running[culprit][3]}",
            to_end=culprit,
        )

    def _end(self, rank: int) -> None:
        """Kills a rank that cannot end itself, if it is on this host and not this process."""
        if rank in self._pids and rank != self.world.rank:
            try:
                os.kill(self._pids[rank], signal.SIGKILL)
            except ProcessLookupError:
                pass

    def _announce(self, cause: str) -> bool:
        """Makes `cause` the failure unless there is one; whether it is."""
        mine = f"{self.world.rank} {cause}"
        try:
            return self._store.compare_set(_FAILURE, "", mine).decode() == mine
        except RuntimeError:
            return True  # nobody is left to tell

    def _report(self, cause: str, *, primary: bool) -> None:
        """Ends this process, after all others and with the cause where it was found here first."""
        if primary:
            self._wait_for_others()
            sys.stderr.write(f"longplay: error: {cause}\n")
        _leave()

    def _make_way(self) -> None:
        """Ends this process for another's failure; rank 0, which holds the store, after all but that one."""
        self._store.set(f"left/{self.world.rank}", "1")
        if self.world.is_rank0:
            failed = int(self._store.get(_FAILURE).decode().split()[0])
            self._wait_for_others(but=failed)
            time.sleep(_INTERVAL_S)  # the failed rank looks for our mark in the store meanwhile
        _leave()

    def _wait_for_others(self, but: int | None = None) -> None:
        """Waits until every other rank has left or is dead, or has had time to."""
        deadline = time.monotonic() + _LAST_WORDS_S
        others = [rank for rank in range(self.world.world_size) if rank not in (self.world.rank, but)]
        while others and time.monotonic() < deadline:
            try:
                others = [rank for rank in others if not self._store.check([f"left/{rank}"])]
            except RuntimeError:
                return
            others = [rank for rank in others if rank not in self._pids or _lives(self._pids[rank])]
            time.sleep(_INTERVAL_S / 5)
        for rank in others:
            self._end(rank)

    # ------------------------------------------------------------------ the store

    def _connect(self, nonce: int) -> Any:
        """A connection of our own: a blocking call on the process group's would hold ours up."""
        store = torch.distributed.TCPStore(  # pyright: ignore[reportPrivateImportUsage]  # it is documented
            os.environ["MASTER_ADDR"],
            int(os.environ["MASTER_PORT"]),
            is_master=False,
            wait_for_workers=False,
            timeout=timedelta(seconds=max(10.0, self._silence_s)),
        )
        prefix = f"longplay-watchdog-{nonce}"
        return torch.distributed.PrefixStore(prefix, store)  # pyright: ignore[reportPrivateImportUsage]  # as above

    def _known(self, rank: int) -> bool:
        return self._store.check([self._key(rank)])

    @staticmethod
    def _key(rank: int) -> str:
        return f"rank/{rank}"


_ALL = -1  # in place of a rank: all of them


def _waits_for_others() -> bool:
    """Whether the main thread is inside a collective."""
    frame = sys._current_frames().get(threading.main_thread().ident or 0)
    while frame is not None:
        if any(part in frame.f_code.co_filename for part in _COLLECTIVES):
            return True
        frame = frame.f_back
    return False


def _lives(pid: int) -> bool:
    """Whether a process of this host runs; one that ended and was not yet waited for does not."""
    try:
        with open(f"/proc/{pid}/stat") as file:
            return file.read().rpartition(")")[2].split()[0] not in ("Z", "X")
    except OSError:
        return False


def _leave() -> None:
    """Ends this process at once, whatever its main thread waits for."""
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(1)
