"""One job of a sweep, in the process of one rank: train the run, then evaluate both splits."""

import functools
import os
import signal
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from submitit import JobEnvironment

from longplay.data_shards.storage.locations import parse_location
from longplay.data_shards.stream.splits import Part
from longplay.distributed.runtime.memory import reset_peak_memory
from longplay.distributed.runtime.world import LOCAL_JOB
from longplay.launch.console.exit_codes import EXIT_REQUEUE, exit_code_of
from longplay.launch.evaluation.evaluate_run import evaluate_run, write_evaluation
from longplay.launch.evaluation.saved_evaluation import evaluation_file, is_evaluated
from longplay.launch.run_folders.tensorboard_log import write_final_metrics
from longplay.launch.settings.imports import import_module
from longplay.launch.sweeps.grid import SweepJobSpec
from longplay.launch.sweeps.job_log import STARTS, STOPPED
from longplay.launch.training.train import train

SPLITS: tuple[Part, ...] = ("validation", "test")


@dataclass(frozen=True, kw_only=True)
class SweepJob:
    """A callable that submitit runs in every rank of a job.

    Slurm sends SIGUSR1 before the time limit, and SIGTERM when it preempts or cancels the job. Training then
    saves at the end of its step and returns EXIT_REQUEUE. After SIGUSR1, requeue.sh requeues the job.

    Attributes:
        run: the run folder.
        imports: modules of the user that register encoders, losses, metrics or recipes.
    """

    spec: SweepJobSpec
    run: Path
    imports: tuple[str, ...] = ()

    def __call__(self) -> None:
        """Run the job and exit with its code unless that is 0."""
        _set_rank_variables()
        before = _exit_on_signals()
        try:
            restarts = os.environ.get("SLURM_RESTART_COUNT", "0")
            node = os.environ.get("SLURMD_NODENAME") or os.uname().nodename
            print(f"{STARTS} {self.spec.name}, start {int(restarts) + 1}, on {node}", flush=True)
            code = self.train_and_evaluate()
            if code == EXIT_REQUEUE:
                print(STOPPED, flush=True)
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)
        if code:
            sys.exit(code)

    def train_and_evaluate(self) -> int:
        """Train and evaluate, without repeating what is done, and return the exit code."""
        code = exit_code_of(self._train)
        if code:
            return code  # a stopped training keeps its handlers
        for split in SPLITS:
            file = evaluation_file(self.run, split)
            if code or is_evaluated(self.run, split):
                continue
            reset_peak_memory()
            code = exit_code_of(functools.partial(self._evaluate, split, file))
        return code

    def _train(self) -> int:
        for name in self.imports:
            import_module(name)
        return train(self.spec.config, parse_location(self.spec.data), self.run)

    def _evaluate(self, split: Part, file: Path) -> int:
        device = self.spec.config.train.device
        data = parse_location(self.spec.data)
        found = evaluate_run(self.run, split=split, data=data, device=device)
        if found is not None:
            write_evaluation(found, file)
            write_final_metrics(self.run, split, found.checkpoint.step, found.result.metrics)
            print(f"evaluated the {split} split: {file}", flush=True)
        return 0


def is_finished(run: Path) -> bool:
    """Return whether the run of a sweep has been trained and evaluated."""
    return all(is_evaluated(run, split) for split in SPLITS)


def _exit_on_signals() -> dict[int, Any]:
    """Exit on SIGUSR1 and SIGTERM, because only training has state to save; return the previous handlers."""
    codes: dict[int, int] = {signal.SIGUSR1: EXIT_REQUEUE, signal.SIGTERM: 128 + signal.SIGTERM}
    return {each: signal.signal(each, lambda number, _: sys.exit(codes[number])) for each in codes}


def _set_rank_variables() -> None:
    """Set the variables that `runtime.world` reads, if submitit started the ranks without Slurm."""
    try:
        environment = JobEnvironment()
    except RuntimeError:
        return  # submitit did not start this process
    if environment.cluster == "local" and environment.num_tasks > 1:
        os.environ.update(
            RANK=str(environment.global_rank),
            LOCAL_RANK=str(environment.local_rank),
            WORLD_SIZE=str(environment.num_tasks),
        )
        os.environ[LOCAL_JOB] = environment.raw_job_id
