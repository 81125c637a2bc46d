"""Alternate long-lived processes under torchrun, a few steps at a time."""

from __future__ import annotations

import contextlib
import os
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

import torch

from longplay.distributed.runtime.collectives import all_reduce_max
from longplay.distributed.runtime.rendezvous import free_port
from longplay.distributed.runtime.world import World, close_world, init_world


class Worker:
    """`python -m MODULE WORDS --turns PIPE` under torchrun, which runs one turn of work per request.

    Its ranks call `take_turns`. Each rank has one thread and, if the machine has enough cores, its own core.

    Args:
        first_core: core of rank 0; each further rank has the next core.
    """

    def __init__(self, module: str, words: list[str], *, world_size: int, first_core: int = 0) -> None:
        self._folder = tempfile.TemporaryDirectory()
        turns = Path(self._folder.name) / "turns"
        os.mkfifo(turns)
        command = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", str(world_size)]
        command += ["--master-port", str(free_port()), "-m", module, *words]
        command += ["--turns", str(turns), "--first-core", str(first_core)]
        self._stderr = (Path(self._folder.name) / "stderr").open("w+")
        self._process = subprocess.Popen(
            command,
            stdout=subprocess.PIPE,
            stderr=self._stderr,
            text=True,
            env=os.environ | {"OMP_NUM_THREADS": "1"},
        )
        # Open for reading too, or opening would block forever if rank 0 fails before it reads.
        self._turns = os.fdopen(os.open(turns, os.O_RDWR), "w")
        self.result()  # the first turn is a warm-up

    def go(self) -> None:
        """Start one turn."""
        self._turns.write("go\n")
        self._turns.flush()

    def result(self) -> float:
        """Wait for the end of the turn and return what rank 0 measured."""
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        if not line:
            self._stderr.seek(0)
            raise SystemExit(f"a worker failed:\n{self._stderr.read()[-4000:]}")
        return float(line)

    def turn(self) -> float:
        """Run one turn and return what rank 0 measured."""
        self.go()
        return self.result()

    def close(self) -> None:
        """End the processes."""
        self._turns.close()  # rank 0 reads end of file
        with contextlib.suppress(subprocess.TimeoutExpired):
            self._process.communicate(timeout=60)
        self._process.kill()
        self._folder.cleanup()


@contextlib.contextmanager
def workers() -> Iterator[Callable[..., Worker]]:
    """Yield a function that starts a `Worker`; end all workers on exit."""
    with contextlib.ExitStack() as stack:

        def start(module: str, words: list[str], *, world_size: int, first_core: int = 0) -> Worker:
            worker = Worker(module, words, world_size=world_size, first_core=first_core)
            stack.callback(worker.close)
            return worker

        yield start


def take_turns(turns: Path, first_core: int, prepare: Callable[[World], Callable[[], float]]) -> None:
    """Serve turns in one rank of a `Worker` until it ends. Collective.

    Args:
        prepare: called once; returns the function of a turn, whose result rank 0 reports.
    """
    torch.set_num_threads(1)
    cores = sorted(os.sched_getaffinity(0))
    os.sched_setaffinity(0, {cores[(first_core + int(os.environ["LOCAL_RANK"])) % len(cores)]})
    world = init_world(device="auto")
    requests = turns.open() if world.is_rank0 else None
    work = prepare(world)
    more = torch.ones((), device=world.device)
    while more:
        measured = work()
        if requests is not None:
            print(measured, flush=True)
            more.fill_(1 if requests.readline() else 0)
        else:
            more.zero_()
        all_reduce_max(more, world)  # broadcasts rank 0's value
    close_world(world)
