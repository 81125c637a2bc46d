"""Processes under torchrun that are started once and then work in turns, a few steps each."""

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
from longplay.distributed.runtime.world import World, close_world, free_port, init_world


class Worker:
    """`python -m MODULE WORDS --turns PIPE` on some ranks, which does some work whenever it is told to.

    Its ranks call `take_turns`. One thread and, as far as there are cores, one core is each rank's own.

    Args:
        first_core: of rank 0; the next rank has the next one.
    """

    def __init__(self, module: str, words: list[str], *, world_size: int, first_core: int = 0) -> None:
        self._folder = tempfile.TemporaryDirectory()
        turns = Path(self._folder.name) / "turns"
        os.mkfifo(turns)
        command = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", str(world_size)]
        command += ["--master-port", str(free_port()), "-m", module, *words]
        command += ["--turns", str(turns), "--first-core", str(first_core)]
        self._complaints = (Path(self._folder.name) / "stderr").open("w+")
        self._process = subprocess.Popen(
            command,
            stdout=subprocess.PIPE,
            stderr=self._complaints,
            text=True,
            env=os.environ | {"OMP_NUM_THREADS": "1"},
        )
        # For reading too, or opening would wait for ever where rank 0 fails before it reads.
        self._turns = os.fdopen(os.open(turns, os.O_RDWR), "w")
        self.result()  # of the first turn, which does not count

    def go(self) -> None:
        """Give it its turn."""
        self._turns.write("go\n")
        self._turns.flush()

    def result(self) -> float:
        """Wait for the end of its turn; what rank 0 measured."""
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        if not line:
            self._complaints.seek(0)
            raise SystemExit(f"a worker failed:\n{self._complaints.read()[-4000:]}")
        return float(line)

    def turn(self) -> float:
        """Give it its turn and wait for what it measured."""
        self.go()
        return self.result()

    def close(self) -> None:
        """End it."""
        self._turns.close()  # rank 0 reads the end
        with contextlib.suppress(subprocess.TimeoutExpired):
            self._process.communicate(timeout=60)
        self._process.kill()
        self._folder.cleanup()


@contextlib.contextmanager
def workers() -> Iterator[Callable[..., Worker]]:
    """Gives what makes a `Worker`; all that it made end with the context."""
    with contextlib.ExitStack() as stack:

        def start(module: str, words: list[str], *, world_size: int, first_core: int = 0) -> Worker:
            worker = Worker(module, words, world_size=world_size, first_core=first_core)
            stack.callback(worker.close)
            return worker

        yield start


def take_turns(turns: Path, first_core: int, prepare: Callable[[World], Callable[[], float]]) -> None:
    """One rank's part in a `Worker`, until it is ended.

    Args:
        prepare: called once, returns a turn's work, which returns what it measured; rank 0's is told.
    """
    torch.set_num_threads(1)
    cores = sorted(os.sched_getaffinity(0))
    os.sched_setaffinity(0, {cores[(first_core + int(os.environ["LOCAL_RANK"])) % len(cores)]})
    world = init_world(device="auto")
    told = turns.open() if world.is_rank0 else None
    work = prepare(world)
    goes_on = torch.ones((), device=world.device)
    while goes_on:
        measured = work()
        if told is not None:
            print(measured, flush=True)
            goes_on.fill_(1 if told.readline() else 0)
        else:
            goes_on.zero_()
        all_reduce_max(goes_on, world)  # rank 0 says it to all
    close_world()
