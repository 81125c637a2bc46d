"""Faults to inject into one rank of a training run."""

from __future__ import annotations

import hashlib
import itertools
import os
import signal
import sys
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from longplay.launch.training.model import Model
    from longplay.launch.training.step_pipeline import PlannedStep
    from longplay.launch.training.train_step import StepResult


@dataclass(frozen=True)
class AtStep:
    """Make `rank` call `action` just before it trains `step`. Call it in every process, with its rank."""

    step: int
    rank: int
    action: Callable[[], object]

    def __call__(self, this_rank: int) -> None:
        from longplay.launch.training import loop

        original = loop.train_step

        def faulty(model: Model, planned: PlannedStep, **settings: Any) -> StepResult:
            if planned.step == self.step and this_rank == self.rank:
                self.action()
            return original(model, planned, **settings)

        loop.train_step = faulty


def terminate_self() -> None:
    os.kill(os.getpid(), signal.SIGTERM)


def compute_natively() -> None:
    """Spend minutes in one call of a C library, in which Python runs no signal handlers."""
    hashlib.pbkdf2_hmac("sha256", b"a", b"b", 10**9)


def kill_self() -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def stop_self() -> None:
    os.kill(os.getpid(), signal.SIGSTOP)


def sleep_long() -> None:
    time.sleep(600)


def raise_error() -> None:
    raise RuntimeError("injected fault")


def run_out_of_memory() -> None:
    raise MemoryError("Unable to allocate 1.00 TiB")


def fill_the_disk() -> None:
    """Make every later write of tensors fail with a full disk."""
    from longplay.distributed.checkpoints import writer as checkpoint_writer

    def full(*_: object, **__: object) -> None:
        raise OSError(28, "No space left on device")

    checkpoint_writer.write_tensors = full  # pyright: ignore[reportAttributeAccessIssue]


@dataclass(frozen=True)
class SlowDisk:
    """Make every tensor file of `rank` take `parts` times `seconds`, with a sign of progress after each."""

    rank: int
    parts: int
    seconds: float

    def __call__(self, this_rank: int) -> None:
        from longplay.distributed.checkpoints import writer as checkpoint_writer

        original = checkpoint_writer.write_tensors

        def slow(path: Path, tensors: Any, *, progress: Callable[[], None]) -> Any:
            path.touch()
            for _ in range(self.parts):
                time.sleep(self.seconds)
                progress()
            return original(path, tensors, progress=progress)

        if this_rank == self.rank:
            checkpoint_writer.write_tensors = slow


@dataclass(frozen=True)
class Together:
    """Inject several faults."""

    faults: tuple[Callable[[int], object], ...]

    def __call__(self, this_rank: int) -> None:
        for fault in self.faults:
            fault(this_rank)


def forget_shards(this_rank: int) -> None:
    """Make the process read a shard again whenever it needs it."""
    from longplay.data_shards.storage.shard_reader import ShardCache

    original = ShardCache.__init__
    ShardCache.__init__ = lambda self, load, max_bytes: original(self, load, 0)  # pyright: ignore[reportAttributeAccessIssue]


@dataclass(frozen=True)
class SignalInValidation:
    """Make `rank` send itself `number` in the second round of each validation."""

    rank: int
    number: int

    def __call__(self, this_rank: int) -> None:
        from longplay.launch.evaluation import evaluation

        original, rounds = evaluation.make_queries, itertools.count(1)

        def faulty(*args: Any, **settings: Any) -> Any:
            if this_rank == self.rank and next(rounds) == 3:  # the first one is the trial before training
                os.kill(os.getpid(), self.number)
            return original(*args, **settings)

        evaluation.make_queries = faulty


@dataclass(frozen=True)
class UnmarkedReads:
    """Write to `file` each place in distributed/ that reads a tensor on the host without `waiting`."""

    file: Path

    def __call__(self, this_rank: int) -> None:
        import torch

        from longplay.distributed.runtime.waiting import current_wait

        for name in ("tolist", "item", "cpu", "nonzero", "__bool__", "__int__", "__float__", "__index__"):
            setattr(torch.Tensor, name, self._recorded(getattr(torch.Tensor, name), current_wait))

    def _recorded(self, original: Any, current_wait: Callable[[], str]) -> Any:
        def read(tensor: Any, *args: Any, **settings: Any) -> Any:
            caller = sys._getframe(1).f_code
            main = threading.current_thread() is threading.main_thread()
            if main and "/longplay/distributed/" in caller.co_filename and not current_wait():
                with self.file.open("a") as file:
                    file.write(f"{caller.co_filename}: {caller.co_name} calls {original.__name__}\n")
            return original(tensor, *args, **settings)

        return read


@dataclass(frozen=True)
class HangsInBaseline:
    """Make `rank` hang in the baseline of `longplay evaluate`, after the evaluation of the model."""

    rank: int

    def __call__(self, this_rank: int) -> None:
        from longplay.launch.evaluation import evaluate_run

        if this_rank == self.rank:
            evaluate_run.evaluate_popularity = lambda *_: sleep_long()  # pyright: ignore[reportAttributeAccessIssue]


def spoil_the_loss() -> None:
    """Make every later loss of this rank NaN."""
    from longplay.launch.training import train_step

    original = train_step.micro_batch_loss

    def spoilt(*args: object) -> object:
        loss, *rest = original(*args)  # pyright: ignore[reportArgumentType]
        return (loss * float("nan"), *rest)

    train_step.micro_batch_loss = spoilt  # pyright: ignore[reportAttributeAccessIssue]


FAULTS: dict[str, Callable[[], None]] = {
    "killed": kill_self,
    "stopped": stop_self,
    "hangs": sleep_long,
    "raises": raise_error,
    "out of memory": run_out_of_memory,
    "not finite": spoil_the_loss,
    "disk full": fill_the_disk,
}
