"""End every rank when one fails, and print the first cause last.

A thread of each rank sends heartbeats with its progress to the rendezvous' key-value store, and looks for
failures of other ranks:

* a rank that raises an exception announces it;
* a rank that was killed is detected by the ranks of its host, or by its missing heartbeats;
* if no rank makes progress for the timeout, the rank with the least progress is assumed to hang.

A single process is watched too: a read from a network file system or a GPU can hang without an error.
The watchdog uses no collectives after its construction, because a failed rank makes them hang.
"""

import os
import signal
import socket
import sys
import threading
import time
from dataclasses import dataclass
from datetime import timedelta
from types import TracebackType
from typing import Any

import torch

from longplay.distributed.runtime.hang import STARTING, AwakeClock, HangDetector, RankState
from longplay.distributed.runtime.processes import exit_now, is_alive
from longplay.distributed.runtime.waiting import (
    current_wait,
    mark_collectives,
    num_collectives,
    unmark_collectives,
)
from longplay.distributed.runtime.world import World

_INTERVAL_S = 0.5
_SILENCE_S = 30.0
_EXIT_S = 5.0
_FAILURE, _CLOSED = "failure", "closed"
_BROKEN_CONNECTION = ("gloo", "nccl", "connection", "broken pipe", "timed out", "socket")


@dataclass(frozen=True)
class _Fault:
    """A failure that ends the run, and the rank to kill if it cannot exit by itself."""

    cause: str
    to_kill: int | None = None


@dataclass
class _Seen:
    """The last heartbeat of a rank, and its time of arrival by this process's clock."""

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
        self.world, self._hangs, self._clock = world, HangDetector(timeout_s), AwakeClock()
        self._silence_s = min(timeout_s, _SILENCE_S)
        self._steps, self._progress, self._doing, self._rounds = 0, 0, STARTING, 0
        self._first_collective = num_collectives()
        self._stop, self._ended = threading.Event(), threading.Event()
        if world.world_size > 1:
            self._meet()
        watch = self._watch if world.world_size > 1 else self._watch_alone
        self._thread: threading.Thread | None = threading.Thread(
            target=watch, name="longplay-watchdog", daemon=True
        )
        self._thread.start()
        if world.world_size > 1 and not world.is_rank0:
            threading.Thread(target=self._watch_rank0, name="longplay-watchdog-0", daemon=True).start()

    def _meet(self) -> None:
        """Exchange the process ids and connect to the store. Collective."""
        world = self.world
        mine = socket.gethostname(), os.getpid(), time.time_ns()
        processes = [mine] * world.world_size
        torch.distributed.all_gather_object(processes, mine)
        self._store = self._connect(f"longplay-watchdog-{processes[0]}")
        self._pids = {rank: pid for rank, (host, pid, _) in enumerate(processes) if host == mine[0]}
        self._seen: dict[int, _Seen] = {}
        mark_collectives()
        self._send_heartbeat()

    def heartbeat(self, doing: str) -> None:
        """Record progress, and the work that starts now."""
        self._steps += 1
        self._doing = doing

    def progress(self) -> None:
        """Record progress within the current work, or in another thread."""
        self._progress += 1

    def close(self) -> None:
        """Stop watching, and announce that this rank sends no more heartbeats."""
        if self._thread is None:
            return
        self._stop.set()
        self._thread.join()
        self._thread = None
        if self.world.world_size == 1:
            return
        unmark_collectives()
        try:
            self._store.set(self._key(self.world.rank), _CLOSED)
        except RuntimeError:
            pass  # rank 0, which holds the store, has exited already
        self._ended.set()

    def __enter__(self) -> "Watchdog":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if error is None or self._thread is None or self.world.world_size == 1:
            self.close()
            return
        text = f"{type(error).__name__}: {error}".lower()
        if isinstance(error, RuntimeError) and any(word in text for word in _BROKEN_CONNECTION):
            # Another rank is the cause: give the thread time to find it and to end this process.
            time.sleep(self._silence_s + 4 * _INTERVAL_S)
        self._stop.set()
        self._thread.join()
        self._thread = None
        if self._announce(f"rank {self.world.rank} failed"):
            self._wait_for_others()
            self._ended.set()
            return  # Python prints the exception
        exit_now()

    # ------------------------------------------------------------------ the thread

    def _watch_alone(self) -> None:
        while not self._stop.wait(_INTERVAL_S):
            hang = self._hangs.check({0: self._state()}, self._clock.now())
            if hang is not None:
                sys.stderr.write(f"longplay: error: {hang.cause}\n")
                exit_now()

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

    def _watch_rank0(self) -> None:
        """End this process and rank 0 if the rounds of `_watch` stop.

        Requests to the store, which rank 0 holds, have no limit of time.
        """
        clock, rounds, since = AwakeClock(), -1, 0.0
        while not self._ended.wait(_INTERVAL_S):
            now = clock.now()
            if self._rounds != rounds:
                rounds, since = self._rounds, now
            elif now - since > self._silence_s + _EXIT_S:
                self._kill(0)
                sys.stderr.write(
                    f"longplay: error: rank 0 has sent no answer for {self._silence_s + _EXIT_S:g} s: "
                    "it is stopped, or its node is unreachable\n"
                )
                exit_now()

    def _send_heartbeat(self) -> None:
        self._rounds += 1
        self._store.set(self._key(self.world.rank), f"{self._rounds} {self._state().to_text()}")

    def _state(self) -> RankState:
        return RankState(
            steps=self._steps,
            collectives=num_collectives() - self._first_collective,
            progress=self._progress,
            waits_for=current_wait(),
            doing=self._doing,
        )

    def _find_fault(self) -> _Fault | None:
        """Return the first fault found in another rank, or None.

        Each rank checks the processes of its host; rank 0 also checks the heartbeats of all ranks.
        """
        ranks = range(self.world.world_size) if self.world.is_rank0 else self._pids
        now = self._clock.now()
        started = {rank: self._key(rank) for rank in ranks if self._store.check([self._key(rank)])}
        texts = {rank: self._store.get(key).decode() for rank, key in started.items()}
        for rank, text in texts.items():
            if rank not in self._seen or self._seen[rank].text != text:
                self._seen[rank] = _Seen(text, now)
            if text == _CLOSED or rank == self.world.rank:
                continue
            if rank in self._pids and not is_alive(self._pids[rank]):
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
        states = {
            rank: RankState.from_text(text.partition(" ")[2])
            for rank, text in texts.items()
            if text != _CLOSED
        }
        if len(states) < self.world.world_size:
            return None
        hang = self._hangs.check(states, now)
        return None if hang is None else _Fault(hang.cause, to_kill=hang.rank)

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
        exit_now()

    def _exit_after_failure(self) -> None:
        """Exit because another rank failed. Rank 0, which holds the store, exits after all but that rank."""
        self._store.set(f"left/{self.world.rank}", "1")
        if self.world.is_rank0:
            failed = int(self._store.get(_FAILURE).decode().split()[0])
            self._wait_for_others(but=failed)
            time.sleep(_INTERVAL_S)  # the failed rank still reads this rank's mark from the store
        exit_now()

    def _wait_for_others(self, but: int | None = None) -> None:
        """Wait until every other rank has exited; kill those that take too long."""
        deadline = time.monotonic() + _EXIT_S
        others = [rank for rank in range(self.world.world_size) if rank not in (self.world.rank, but)]
        while others and time.monotonic() < deadline:
            try:
                others = [rank for rank in others if not self._store.check([f"left/{rank}"])]
            except RuntimeError:
                return
            others = [rank for rank in others if rank not in self._pids or is_alive(self._pids[rank])]
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

    @staticmethod
    def _key(rank: int) -> str:
        return f"rank/{rank}"
