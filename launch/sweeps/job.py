"""What a sweep's job does where it runs: train, then evaluate both splits; saved and requeued when asked."""

import contextlib
import functools
import os
import signal
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from types import FrameType
from typing import Any

from submitit import JobEnvironment
from submitit.helpers import DelayedSubmission

from longplay.data_shards.storage.locations import parse_location
from longplay.data_shards.stream.splits import Part
from longplay.distributed.runtime.memory import forget_peak_memory
from longplay.distributed.runtime.world import free_port
from longplay.launch.console.exit_codes import EXIT_REQUEUE, exit_code_of
from longplay.launch.evaluation.evaluate_run import evaluate_run
from longplay.launch.settings.recipes import get_recipe
from longplay.launch.settings.resolving import resolve
from longplay.launch.sweeps.job_log import STARTS
from longplay.launch.training.train import train

SPLITS: tuple[Part, ...] = ("validation", "test")
NOT_SHARED = 66  # exit code of a job that does not see the sweep's folder


@dataclass(frozen=True, kw_only=True)
class SweepJob:
    """Called by submitit in every rank of a job.

    A request to stop (SIGUSR2 before the time limit or a preemption that sends it, SIGTERM otherwise) reaches
    every rank. Training saves at the end of its step. After SIGUSR2 rank 0 then follows submitit's protocol:
    `checkpoint`, and back into the queue. After SIGTERM whether the job comes again is for Slurm to say,
    which sent it: a preempted one does, a cancelled one does not.

    Attributes:
        data: folder or URL of the prepared dataset.
        overrides: settings on top of the recipe.
        run: its run folder.
    """

    name: str
    recipe: str
    data: str
    overrides: tuple[str, ...]
    run: str

    def __call__(self) -> None:
        stop = _Interruption(_submitit_environment())
        with stop.listening():
            self._announce()
            code = self.train_and_evaluate(stop)
        if code:
            sys.exit(code)

    def checkpoint(self) -> DelayedSubmission:
        """The same again: what was done is in the run folder."""
        return DelayedSubmission(self)

    def train_and_evaluate(self, stop: "_Interruption | None" = None) -> int:
        """Do what is left to do; the exit code. Leaves this process if training was asked to stop."""
        with _next_world():
            code = exit_code_of(self._train)
        if stop is not None:
            stop.listen()  # training took the signals over
            if code == EXIT_REQUEUE:
                stop.leave()
        for split in SPLITS:
            file = evaluation_file(Path(self.run), split)
            if code or file.is_file():
                continue
            forget_peak_memory()
            with _next_world():
                code = exit_code_of(functools.partial(self._evaluate, split, file))
        return code

    def _train(self) -> int:
        config = resolve(self.recipe, get_recipe(self.recipe), self.overrides)
        return train(config, parse_location(self.data), Path(self.run))

    def _evaluate(self, split: Part, file: Path) -> int:
        evaluated = evaluate_run(Path(self.run), split=split, out=file)
        if evaluated is not None:
            print(f"evaluated the {split} split: {file}", flush=True)
        return 0

    def _announce(self) -> None:
        restarts = os.environ.get("SLURM_RESTART_COUNT", "0")
        node = os.environ.get("SLURMD_NODENAME") or os.uname().nodename
        print(f"{STARTS} {self.name}, start {int(restarts) + 1}, on {node}", flush=True)


def evaluation_file(run: Path, split: str) -> Path:
    """Where a job leaves what `longplay evaluate --json` prints."""
    return run / "evaluation" / f"{split}.json"


def is_finished(run: Path) -> bool:
    """Whether the run of a sweep has been trained and evaluated."""
    return all(evaluation_file(run, split).is_file() for split in SPLITS)


class _Interruption:
    """Requests to stop, whether training is there to take them or not."""

    def __init__(self, environment: JobEnvironment | None) -> None:
        self.is_rank0 = environment is None or environment.global_rank == 0
        self.signals = [signal.SIGTERM, signal.SIGUSR1, signal.SIGUSR2]
        # submitit has put its own handler there: it calls `checkpoint` and requeues.
        protocol = signal.getsignal(signal.SIGUSR2)
        self.protocol: Any = protocol if environment is not None and callable(protocol) else None
        self.to_be_requeued = False

    @contextlib.contextmanager
    def listening(self) -> Iterator[None]:
        before = {number: signal.getsignal(number) for number in self.signals}
        self.listen()
        try:
            yield
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)

    def listen(self) -> None:
        signal.signal(signal.SIGTERM, self._end)
        signal.signal(signal.SIGUSR1, self._end)
        signal.signal(signal.SIGUSR2, self._requeue)

    def leave(self) -> None:
        """End this process after all ranks saved; rank 0 requeues the job if that is for it to do."""
        if not self.is_rank0:
            sys.exit(0)
        if self.to_be_requeued and self.protocol is not None:
            self.protocol(signal.SIGUSR2, None)
        sys.exit(EXIT_REQUEUE)

    def _requeue(self, number: int, frame: FrameType | None) -> None:
        self.to_be_requeued = True
        trained = signal.getsignal(signal.SIGUSR1)
        if trained == self._end:  # not in training: nothing is to be saved
            if self.is_rank0:  # the end of the others comes with the requeue
                self.leave()
        elif callable(trained):
            signal.raise_signal(signal.SIGUSR1)
            signal.signal(signal.SIGTERM, lambda *_: None)  # may follow at once, and would end it unsaved

    def _end(self, number: int, frame: FrameType | None) -> None:
        sys.exit(128 + number)


def _submitit_environment() -> JobEnvironment | None:
    """Who we are among submitit's tasks; tells `longplay.distributed.runtime.world` where Slurm does not."""
    try:
        environment = JobEnvironment()
    except RuntimeError:
        return None  # not started by submitit
    if environment.num_tasks == 1:  # a port made from the job's number might be taken by something else
        os.environ.update(MASTER_ADDR="127.0.0.1", MASTER_PORT=str(free_port()))
    elif environment.cluster == "local":
        os.environ.update(
            RANK=str(environment.global_rank),
            LOCAL_RANK=str(environment.local_rank),
            WORLD_SIZE=str(environment.num_tasks),
            MASTER_ADDR="127.0.0.1",
            MASTER_PORT=str(20000 + int(environment.raw_job_id) * 7 % 20000),
        )
    return environment


@contextlib.contextmanager
def _next_world() -> Iterator[None]:
    """Let the ranks meet on another port than before: the last one may not be free yet."""
    port = os.environ.get("MASTER_PORT")
    if port is not None:
        alone = os.environ.get("WORLD_SIZE", "1") == "1"
        os.environ["MASTER_PORT"] = str(free_port() if alone else int(port) + 1)
    yield
