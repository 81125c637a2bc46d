"""Inject many faults into one training run and compare its final metrics with an undisturbed run.

python -m benchmarks.soak                          30 faults on 2 to 4 ranks, about 30 minutes on two cores
python -m benchmarks.soak --faults 5 --seed 3

The faults are those of `benchmarks.faults` on one rank, signals to all ranks, two signals in succession, and
damage to the newest checkpoint between two starts. After each fault the command runs again on another number
of ranks.
"""

from __future__ import annotations

import argparse
import os
import pickle
import random
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Protocol

from benchmarks.faults import FAULTS, AtStep
from longplay.distributed.runtime.world import free_port
from longplay.launch.run_folders.metrics_file import Series, read_scalars

Fault = Callable[[int], None]
SIGNALS = {"SIGTERM": signal.SIGTERM, "SIGUSR1": signal.SIGUSR1, "SIGINT": signal.SIGINT}
DAMAGES = ("bit flipped", "file cut", "file gone", "state cut", "folder gone")
LIMIT_S = 180.0
"""Upper bound on the duration of one start."""
TIMEOUT_S = 10


class Running(Protocol):
    """A started command."""

    def wait(self, timeout_s: float) -> int:
        """Return the exit code; fail if the command runs longer than `timeout_s`."""
        ...

    def signal_when(self, number: int, reached: Callable[[], bool], timeout_s: float) -> None:
        """Send a signal to all ranks as soon as `reached()` is true."""
        ...


Start = Callable[[list[str], Path, int, Fault | None], Running]
"""(words after `longplay`, file for the output, ranks, fault) -> the running command."""


class Soak:
    """A training run that is disturbed by faults and then runs to its end.

    Args:
        words: the command without `--run`; it must save a checkpoint every few steps.
    """

    def __init__(self, words: list[str], folder: Path, start: Start, *, steps: int, seed: int) -> None:
        self.words, self.folder, self._start, self.steps = words, folder, start, steps
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
            assert "error" in last.lower() or "Error" in last, f"{kind}: {last}"
            return
        running = self._begin(self.run, world_size, None)
        number = SIGNALS.get(kind, signal.SIGTERM)

        def reached() -> bool:  # a start first drops the scalars that were logged after its checkpoint
            return "watch it with" in self._log(self.run) and last_logged(self.run) >= step

        running.signal_when(number, reached, LIMIT_S)
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

    def _begin(self, run: Path, world_size: int, fault: Fault | None) -> Running:
        words = [*self.words, "--run", str(run), "--train.timeout_s", str(TIMEOUT_S)]
        return self._start(words, run.with_suffix(".log"), world_size, fault)

    def _log(self, run: Path) -> str:
        return run.with_suffix(".log").read_text()


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


class Processes:
    """Ranks as separate processes with the environment that torchrun sets."""

    def __init__(self, words: list[str], output: Path, world_size: int, fault: Fault | None) -> None:
        port, self._log = free_port(), output.open("w")
        self.processes = []
        for rank in range(world_size):
            env = {
                **os.environ,
                **{"RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": str(world_size)},
                **{"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "OMP_NUM_THREADS": "1"},
            }
            command = [sys.executable, "-m", "benchmarks.soak", "--rank", pickle.dumps(fault).hex(), *words]
            self.processes.append(
                subprocess.Popen(command, env=env, stdout=self._log, stderr=subprocess.STDOUT)
            )

    def wait(self, timeout_s: float) -> int:
        deadline = time.monotonic() + timeout_s
        try:
            codes = [process.wait(max(0.1, deadline - time.monotonic())) for process in self.processes]
        finally:
            for process in self.processes:
                process.kill()
            self._log.close()
        return next((code for code in codes if code), 0)

    def signal_when(self, number: int, reached: Callable[[], bool], timeout_s: float) -> None:
        deadline = time.monotonic() + timeout_s
        while not reached():
            assert time.monotonic() < deadline, "the condition never became true"
            assert all(process.poll() is None for process in self.processes), (
                "ended before the signal was due"
            )
            time.sleep(0.05)
        for process in self.processes:
            process.send_signal(number)


def main() -> None:
    """Run the soak test and print its history."""
    if sys.argv[1:2] == ["--rank"]:
        sys.exit(_rank(sys.argv[2], sys.argv[3:]))
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--faults", type=int, default=30)
    parser.add_argument("--ranks", type=int, nargs="+", default=[2, 3, 4])
    parser.add_argument("--steps", type=int, default=400)
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as temporary:
        folder, longplay = Path(temporary), [sys.executable, "-m", "longplay.launch.cli"]
        generated = ["--users", "400", "--items", "600", "--events", "20000"]
        subprocess.run(
            [*longplay, "prepare", "synthetic", "--out", str(folder / "data"), *generated],
            check=True,
            stdout=subprocess.DEVNULL,
        )
        words = ["train", "mambarec", "--data", str(folder / "data"), *settings(args.steps)]
        soak = Soak(words, folder, Processes, steps=args.steps, seed=args.seed)
        expected = soak.undisturbed(args.ranks[0])
        try:
            found = soak.disturbed(args.faults, args.ranks)
        finally:
            print("\n".join(soak.history))
        difference = largest_difference(expected, found)
    print(f"\n{args.faults} faults, {args.steps} steps")
    print(f"largest difference of any loss or metric: {difference:.1e}")


def settings(steps: int) -> list[str]:
    """Return settings of a small model with dropout, gradient accumulation, packing and validations."""
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


def _rank(fault: str, words: list[str]) -> int:
    """Install the fault and run the command in this rank's process."""
    from longplay.launch.cli import main as longplay

    action = pickle.loads(bytes.fromhex(fault))
    if action is not None:
        action(int(os.environ["RANK"]))
    return longplay(words)


if __name__ == "__main__":
    main()
