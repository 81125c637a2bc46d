"""Inject many faults into one training run and compare its losses and metrics with an undisturbed run's.

The faults are those of `support.faults` on one rank, signals to all ranks, two signals in succession, damage
to the newest checkpoint and edits of the run folder between two starts, second commands on the same run, and
a data server that stops. After each fault the same command runs again on another number of ranks.
"""

import random
import signal
import sys
import time
from pathlib import Path

import psutil

from longplay.distributed.checkpoints.checkpoint import latest_checkpoint
from longplay.launch.run_folders.metrics_file import Series, read_scalars
from support.commands import Command
from support.data_server import DataServer
from support.faults import FAULTS, AtStep, Together, forget_shards
from support.folder_edits import DAMAGES, EDITS, damage

SIGNALS = {"SIGTERM": signal.SIGTERM, "SIGUSR1": signal.SIGUSR1, "SIGINT": signal.SIGINT}
COMMANDS = ("second train", "evaluate")
SERVER = ("server silent", "server down", "server fails")
KINDS = (*FAULTS, *SIGNALS, "two signals", *DAMAGES, *EDITS, "config damaged", *COMMANDS, *SERVER)
LIMIT_S = 180.0
"""Upper bound on the duration of one start."""
WATCHDOG_TIMEOUT_S = 10


class Soak:
    """A training run that is disturbed by faults and then runs to its end.

    Args:
        words: the command without `--data` and `--run`; it must save a checkpoint every few steps.
        data: the dataset, which the runs read from a web server.
        steps: the run's last step.
        seed: seed of the order and the steps of the faults.
    """

    def __init__(self, words: list[str], data: Path, folder: Path, *, steps: int, seed: int) -> None:
        self.words, self.data, self.folder, self.steps = words, data, folder, steps
        self.run, self.draws = folder / "disturbed", random.Random(seed)
        self.server = DataServer(data)
        self.history: list[str] = []
        self.kept: list[Path] = []

    def undisturbed(self, world_size: int) -> dict[str, Series]:
        """Return the losses and metrics of an undisturbed run."""
        run = self.folder / "undisturbed"
        code = self._begin(run, world_size).wait(LIMIT_S)
        assert code == 0, self._log(run)
        return losses_and_metrics(run)

    def disturbed(self, kinds: list[str], world_sizes: list[int]) -> dict[str, Series]:
        """Return the losses and metrics of a run that is restarted after each fault.

        Raises:
            AssertionError: a start hangs, ends with the wrong exit code, prints no cause, loses a checkpoint
                or a file of the user, or leaves a process.
        """
        servers = set(psutil.Process().children(recursive=True))  # multiprocessing's own
        for number, kind in enumerate(kinds):
            world_size, before = self.draws.choice(world_sizes), last_step(self.run)
            room = (self.steps - before) // (len(kinds) - number + 1)
            step = before + self.draws.randint(2, max(2, min(room, 14)))
            began = time.monotonic()
            self._disturb(kind, step, world_size)
            took = f"{time.monotonic() - began:5.1f} s"
            self.history.append(f"{number + 1:>3}  {kind:<15} {world_size} ranks  at step {step:>4}  {took}")
            sys.stdout.write(f"{self.history[-1]}\n")  # pytest -s shows it
            sys.stdout.flush()
            assert kind in DAMAGES or last_step(self.run) >= before, f"{kind}: lost step {before}"
            left = set(psutil.Process().children(recursive=True)) - servers
            assert not left, f"{kind}: left {left}"
        code = self._begin(self.run, self.draws.choice(world_sizes)).wait(LIMIT_S)
        assert code == 0, self._log(self.run)
        assert all(path.exists() for path in self.kept), [path for path in self.kept if not path.exists()]
        return losses_and_metrics(self.run)

    def _disturb(self, kind: str, step: int, world_size: int) -> None:
        if kind in FAULTS:
            fault = AtStep(step, self.draws.randrange(world_size), FAULTS[kind])
            self._check_failure(kind, self._begin(self.run, world_size, fault).wait(LIMIT_S))
            return
        # Repeated requests of several shards take longer than a hang of the other faults.
        timeout_s = LIMIT_S if kind == "server fails" else WATCHDOG_TIMEOUT_S
        running = self._begin(self.run, world_size, timeout_s=timeout_s)

        def reached() -> bool:  # a start first drops the scalars that were logged after its checkpoint
            return "watch it with" in self._log(self.run) and last_logged(self.run) >= step

        running.signal_when(signal.SIGCONT, reached, LIMIT_S)  # which does nothing
        if kind == "server down":
            self.server.close()
            self._check_failure(kind, running.wait(LIMIT_S))
            self.server = DataServer(self.data, self.server.port)
            return
        if kind in COMMANDS:
            running.signal_when(signal.SIGSTOP, lambda: True)  # or it may end before the second starts
            self._run_second(kind)
            running.signal_when(signal.SIGCONT, lambda: True)
        elif kind == "server silent":
            self.server.silent_after = self.server.num_shards_read
            running.signal_when(signal.SIGCONT, lambda: self.server.is_silent, LIMIT_S)
        elif kind == "server fails":
            names = [path.name for path in self.data.glob("*.tar")]
            self.server.faults = {name: ["truncate", "drop", "busy"] for name in names}
            running.signal_when(signal.SIGCONT, lambda: last_logged(self.run) >= step + 5, LIMIT_S)
        running.signal_when(SIGNALS.get(kind, signal.SIGTERM), lambda: True, LIMIT_S)
        if kind == "two signals":
            running.signal_when(signal.SIGTERM, lambda: True, LIMIT_S)
        code = running.wait(LIMIT_S)
        assert code == 75 or kind == "two signals", f"{kind}: ended with {code}\n{self._log(self.run)}"
        self.server.silent_after, self.server.faults = 10**9, {}
        self._edit(kind)

    def _edit(self, kind: str) -> None:
        if kind in DAMAGES:
            damage(self.run, kind, self.draws)
        elif kind in EDITS:
            self.kept += EDITS[kind](self.run, self.draws)
        elif kind == "config damaged":
            config = self.run / "config.json"
            content = config.read_text()
            config.write_text(content[: len(content) // 2])
            self._check_failure(kind, self._begin(self.run, 1).wait(LIMIT_S))
            config.write_text(content)

    def _run_second(self, kind: str) -> None:
        """Run another command on the run while it trains."""
        log = self.folder / "second.log"
        if kind == "evaluate":
            words = ["evaluate", str(self.run), "--checkpoint", "last", "--device", "cpu"]
            assert Command(words, log).wait(LIMIT_S) == 0, log.read_text()
        else:
            assert Command(self._words(self.run), log).wait(LIMIT_S) == 2
            assert "another process is training in it" in log.read_text()

    def _check_failure(self, kind: str, code: int) -> None:
        assert code not in (0, 75), f"{kind}: ended with {code}\n{self._log(self.run)}"
        last = self._log(self.run).splitlines()[-1]
        assert "error" in last.lower(), f"{kind}: {last}"

    def _begin(
        self,
        run: Path,
        world_size: int,
        fault: AtStep | None = None,
        *,
        timeout_s: float = WATCHDOG_TIMEOUT_S,
    ) -> Command:
        faults = Together((forget_shards,) if fault is None else (forget_shards, fault))
        words = self._words(run, timeout_s)
        return Command(words, run.with_suffix(".log"), world_size=world_size, fault=faults)

    def _words(self, run: Path, timeout_s: float = WATCHDOG_TIMEOUT_S) -> list[str]:
        timeout = ["--train.timeout_s", str(timeout_s)]
        return [*self.words, "--data", self.server.url, "--run", str(run), *timeout]

    def _log(self, run: Path) -> str:
        return run.with_suffix(".log").read_text()


def soak_settings(steps: int) -> list[str]:
    """Return the settings of a small model with dropout, accumulation, packing and frequent checkpoints."""
    chosen = {
        "context_length": 40,
        "encoder.d_model": 16,
        "encoder.dropout": 0.2,
        "data.rows_per_step": 24,
        "data.pool_rows": 10,
        "data.num_lanes": 4,
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
    """Return the step of the newest intact checkpoint, or 0."""
    checkpoint, _ = latest_checkpoint(run / "checkpoints")
    return 0 if checkpoint is None else checkpoint.step


def last_logged(run: Path) -> int:
    """Return the last step whose loss was logged, or 0."""
    return max(read_scalars(run).get("train/loss", {}), default=0)


def largest_difference(one: dict[str, Series], other: dict[str, Series]) -> float:
    """Return the largest difference of any scalar. Both must have the same tags and steps."""
    assert {tag: set(values) for tag, values in one.items()} == {
        tag: set(values) for tag, values in other.items()
    }, "the runs have not logged the same scalars"
    return max(abs(value - other[tag][step]) for tag, values in one.items() for step, value in values.items())
