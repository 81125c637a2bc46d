"""Run `longplay ...` in separate processes, forked from a server that has imported the heavy packages."""

import multiprocessing as mp
import os
import sys
import time
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any

from support.ranks import FORK_SERVER

_SPAWN = mp.get_context("spawn")


class Command:
    """Start `longplay WORDS` on `world_size` ranks with the environment that torchrun sets.

    Args:
        words: the command line without `longplay`.
        output: file that receives stdout and stderr of all ranks.
        world_size: number of ranks.
        fault: called with the rank in each process before the command, to inject a fault.
        fresh: start new interpreters, in which DeepSpeed has not been imported for the CPU.
    """

    def __init__(
        self,
        words: list[str],
        output: Path,
        *,
        world_size: int = 1,
        fault: Callable[[int], None] | None = None,
        fresh: bool = False,
    ) -> None:
        from longplay.distributed.runtime.rendezvous import free_port

        self.output = output
        output.write_text("")
        port = free_port()
        context: Any = _SPAWN if fresh else FORK_SERVER
        self.processes = [
            context.Process(
                target=_main, args=(words, str(output), rank, world_size, port, fault), daemon=True
            )
            for rank in range(world_size)
        ]
        for process in self.processes:
            process.start()

    def wait(self, timeout_s: float = 240.0) -> int:
        """Return the first exit code that is not 0, or 0. Kill the processes and fail at the deadline."""
        deadline = time.monotonic() + timeout_s
        for process in self.processes:
            process.join(max(0.1, deadline - time.monotonic()))
        alive = [process for process in self.processes if process.is_alive()]
        self.kill()
        assert not alive, f"still running after {timeout_s:.0f} s:\n{self.output.read_text()}"
        codes = [process.exitcode or 0 for process in self.processes]
        return next((code for code in codes if code), 0)

    def signal_when(self, number: int, reached: Callable[[], bool], timeout_s: float = 240.0) -> None:
        """Send signal `number` to every rank as soon as `reached()`."""
        deadline = time.monotonic() + timeout_s
        while not reached():
            ended = [process for process in self.processes if not process.is_alive()]
            assert not ended, f"exited before the signal was sent:\n{self.output.read_text()}"
            assert time.monotonic() < deadline, f"the condition never became true:\n{self.output.read_text()}"
            self.processes[0].join(0.01)
        for process in self.processes:
            assert process.pid is not None
            os.kill(process.pid, number)

    def kill(self) -> None:
        for process in self.processes:
            if process.is_alive():
                process.kill()
            process.join()


def enter(folder: Path, rank: int) -> None:
    """Add `folder` to the path of this process and make it the current folder."""
    sys.path.insert(0, str(folder))
    os.chdir(folder)


def longplay(words: list[str], output: Path, *, world_size: int = 1, fresh: bool = False) -> str:
    """Run a command, which must succeed, and return its output."""
    code = Command(words, output, world_size=world_size, fresh=fresh).wait()
    assert code == 0, f"exit code {code}:\n{output.read_text()}"
    return output.read_text()


def _main(
    words: list[str],
    output: str,
    rank: int,
    world_size: int,
    port: int,
    fault: Callable[[int], None] | None,
) -> None:
    file: Any = open(output, "a", buffering=1)
    os.dup2(file.fileno(), 1)
    os.dup2(file.fileno(), 2)
    sys.stdout = sys.stderr = file
    os.environ["OMP_NUM_THREADS"] = "1"
    if world_size > 1:
        os.environ.update(RANK=str(rank), LOCAL_RANK=str(rank), WORLD_SIZE=str(world_size))
        os.environ.update(MASTER_ADDR="127.0.0.1", MASTER_PORT=str(port))
    import torch

    from longplay.launch.cli import main
    from longplay.launch.settings import recipes
    from support.runs import small_settings

    torch.set_num_threads(1)
    recipes.RECIPES.register("small", small_settings)
    if fault is not None:
        fault(rank)
    try:
        code = main(words)
    except BaseException:  # the interpreter would print it and exit with 1
        traceback.print_exc()
        code = 1
    file.flush()
    os._exit(code)
