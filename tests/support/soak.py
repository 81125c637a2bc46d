"""Inject many faults into one training run and compare its losses and metrics with an undisturbed run's.

The faults are those of `support.faults` on one rank, signals to all ranks, two signals in succession, and
damage to the newest checkpoint between two starts. After each fault the same command runs again on another
number of ranks.
"""

import os
import random
import signal
import time
from pathlib import Path

from longplay.launch.run_folders.metrics_file import Series, read_scalars
from support.commands import Command
from support.faults import FAULTS, AtStep

SIGNALS = {"SIGTERM": signal.SIGTERM, "SIGUSR1": signal.SIGUSR1, "SIGINT": signal.SIGINT}
DAMAGES = ("bit flipped", "file cut", "file gone", "state cut", "folder gone")
LIMIT_S = 180.0
"""Upper bound on the duration of one start."""
WATCHDOG_TIMEOUT_S = 10


class Soak:
    """A training run that is disturbed by faults and then runs to its end.

    Args:
        words: the command without `--run`; it must save a checkpoint every few steps.
        steps: the run's last step.
        seed: seed of the order and the steps of the faults.
    """

    def __init__(self, words: list[str], folder: Path, *, steps: int, seed: int) -> None:
        self.words, self.folder, self.steps = words, folder, steps
        self.run = folder / "disturbed"
        self.draws = random.Random(seed)
        self.history: list[str] = []

    def undisturbed(self, world_size: int) -> dict[str, Series]:
        """Return the losses and metrics of an undisturbed run."""
        run = self.folder / "undisturbed"
        code = self._begin(run, world_size, None).wait(LIMIT_S)
        assert code == 0, self._log(run)
        return losses_and_metrics(run)

    def disturbed(self, num_faults: int, world_sizes: list[int]) -> dict[str, Series]:
        """Return the losses and metrics of a run that is restarted after each of `num_faults` faults.

        Raises:
            AssertionError: a start hangs, ends with the wrong exit code, or prints no cause.
        """
        kinds = [*FAULTS, *SIGNALS, "two signals", *DAMAGES]
        self.draws.shuffle(kinds)
        for number in range(num_faults):
            kind = kinds[number % len(kinds)]
            world_size = self.draws.choice(world_sizes)
            room = (self.steps - last_step(self.run)) // (num_faults - number + 1)
            step = last_step(self.run) + self.draws.randint(2, max(2, min(room, 14)))
            began = time.monotonic()
            self._disturb(kind, step, world_size)
            took = f"{time.monotonic() - began:5.1f} s"
            self.history.append(f"{number + 1:>3}  {kind:<14} {world_size} ranks  at step {step:>4}  {took}")
        code = self._begin(self.run, self.draws.choice(world_sizes), None).wait(LIMIT_S)
        assert code == 0, self._log(self.run)
        return losses_and_metrics(self.run)

    def _disturb(self, kind: str, step: int, world_size: int) -> None:
        if kind in FAULTS:
            fault = AtStep(step, self.draws.randrange(world_size), FAULTS[kind])
            code = self._begin(self.run, world_size, fault).wait(LIMIT_S)
            assert code not in (0, 75), f"{kind}: ended with {code}\n{self._log(self.run)}"
            last = self._log(self.run).splitlines()[-1]
            assert "error" in last.lower(), f"{kind}: {last}"
            return
        running = self._begin(self.run, world_size, None)

        def reached() -> bool:  # a start first drops the scalars that were logged after its checkpoint
            return "watch it with" in self._log(self.run) and last_logged(self.run) >= step

        running.signal_when(SIGNALS.get(kind, signal.SIGTERM), reached, LIMIT_S)
        if kind == "two signals":
            running.signal_when(signal.SIGTERM, lambda: True, LIMIT_S)
        code = running.wait(LIMIT_S)
        assert code == 75 or kind == "two signals", f"{kind}: ended with {code}\n{self._log(self.run)}"
        if kind in DAMAGES:
            self._damage(kind)

    def _damage(self, kind: str) -> None:
        """Damage the newest checkpoint, unless it is the only one."""
        checkpoints = sorted((self.run / "checkpoints").glob("step-*"))
        if len(checkpoints) < 2:
            return
        newest = checkpoints[-1]
        file = self.draws.choice(sorted(newest.glob("*.safetensors")))
        if kind == "bit flipped":
            content = bytearray(file.read_bytes())
            content[self.draws.randrange(len(content))] ^= 1 << self.draws.randrange(8)
            file.write_bytes(content)
        elif kind == "file cut":
            os.truncate(file, self.draws.randrange(file.stat().st_size))
        elif kind == "file gone":
            file.unlink()
        elif kind == "state cut":
            os.truncate(newest / "state.json", 100)
        else:
            newest.rename(newest.with_name(f"lost-{newest.name}"))

    def _begin(self, run: Path, world_size: int, fault: AtStep | None) -> Command:
        words = [*self.words, "--run", str(run), "--train.timeout_s", str(WATCHDOG_TIMEOUT_S)]
        return Command(words, run.with_suffix(".log"), world_size=world_size, fault=fault)

    def _log(self, run: Path) -> str:
        return run.with_suffix(".log").read_text()


def soak_settings(steps: int) -> list[str]:
    """Return the settings of a small model with dropout, accumulation, packing and frequent checkpoints."""
    chosen = {
        "context_length": 40,
        "encoder.d_model": 16,
        "encoder.dropout": 0.2,
        "data.rows_per_step": 24,
        "engine.gradient_accumulation_steps": 2,
        "train.max_steps": steps,
        "train.max_epochs": 1000,
        "train.eval_every_steps": 25,
        "train.checkpoint_every_steps": 5,
        "train.keep_checkpoints": 3,
        "train.log_every_steps": 1,
        "train.device": "cpu",
    }
    return [word for name, value in chosen.items() for word in (f"--{name}", str(value))]


def losses_and_metrics(run: Path) -> dict[str, Series]:
    """Return tag -> series. A disturbed run omits or repeats other scalars, such as the time of saving."""
    scalars = read_scalars(run)
    return {tag: scalars[tag] for tag in scalars if tag == "train/loss" or tag.startswith("eval_")}


def last_step(run: Path) -> int:
    """Return the step of the newest checkpoint, or 0."""
    return max((int(path.name[5:]) for path in (run / "checkpoints").glob("step-*")), default=0)


def last_logged(run: Path) -> int:
    """Return the last step whose loss was logged, or 0."""
    return max(read_scalars(run).get("train/loss", {}), default=0)


def largest_difference(one: dict[str, Series], other: dict[str, Series]) -> float:
    """Return the largest difference of any scalar. Both must have the same tags and steps."""
    assert {tag: set(values) for tag, values in one.items()} == {
        tag: set(values) for tag, values in other.items()
    }, "the runs have not logged the same scalars"
    return max(abs(value - other[tag][step]) for tag, values in one.items() for step, value in values.items())
