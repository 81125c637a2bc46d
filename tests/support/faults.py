"""Faults to inject into one rank of a training run."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Callable
from dataclasses import dataclass
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

    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    checkpoint_writer.write_tensors = full  # pyright: ignore[reportAttributeAccessIssue]


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
