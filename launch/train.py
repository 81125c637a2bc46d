"""`longplay train RECIPE --data DIR --run DIR [--section.name value ...]`: train, validate, save, resume."""

import argparse
import dataclasses
import os
import resource
import signal
import sys
import time
from pathlib import Path
from typing import Any

import torch
from tqdm import tqdm

from longplay.data_shards.dataset import Dataset
from longplay.data_shards.train_stream import Batch, TrainStream, check_stream
from longplay.distributed.checkpoint import (
    latest_checkpoint,
    load_checkpoint,
    prune_checkpoints,
    save_checkpoint,
    write_json,
)
from longplay.distributed.world import World, close_world, init_world, read_environment
from longplay.launch.config import ConfigError, RunConfig, resolve
from longplay.launch.evaluation import Evaluation, evaluate
from longplay.launch.model import Model, build_model
from longplay.launch.recipes import get_recipe
from longplay.launch.run_folder import MetricsLog, RunFolder
from longplay.launch.schedule import learning_rate
from longplay.launch.train_step import StepResult, train_step

EXIT_REQUEUE = 75  # EX_TEMPFAIL: saved and stopped on request; the same command goes on


@dataclasses.dataclass(kw_only=True)
class Progress:
    """Where a run stands; all of it is in every checkpoint."""

    step: int = 0
    epoch: int = 0
    step_in_epoch: int = 0
    train_seconds: float = 0.0
    best_value: float | None = None
    best_step: int | None = None
    validations_since_best: int = 0


class StopRequest:
    """Turns the first SIGTERM, SIGUSR1 or SIGINT into a request to save and stop; a second one acts at once."""

    def __init__(self) -> None:
        self.signal: signal.Signals | None = None
        for number in (signal.SIGTERM, signal.SIGUSR1, signal.SIGINT):
            signal.signal(number, self._ask)

    def _ask(self, number: int, frame: Any) -> None:
        self.signal = signal.Signals(number)
        for each in (signal.SIGTERM, signal.SIGUSR1, signal.SIGINT):
            signal.signal(each, signal.SIG_DFL)


class Training:
    """One run from where it stands to its end."""

    def __init__(
        self, config: RunConfig, dataset: Dataset, folder: RunFolder, world: World, stop: StopRequest
    ) -> None:
        self.config, self.dataset, self.folder, self.world, self.stop = config, dataset, folder, world, stop
        self.model: Model = build_model(config, dataset, world)
        self.stream = TrainStream(dataset, config.data, rank=world.rank, world_size=world.world_size)
        self.progress = Progress()
        self._resume()
        self.log: MetricsLog | None = None
        if world.is_rank0:
            self.log = MetricsLog(folder.path, from_step=self.progress.step)
        self.bar: tqdm | None = None

    def run(self) -> int:
        """Train until the end or a request to stop; the process's exit code."""
        if self._finished():
            self.say(f"nothing left to do: {self._why_finished()}")
            return 0
        self._describe()
        self._start_bar()
        self.stream.load_state_dict({"epoch": self.progress.epoch, "step": self.progress.step_in_epoch})
        batches = iter(self.stream)
        while True:
            waited, began = time.perf_counter(), time.process_time()
            batch = next(batches)
            data_wait = time.perf_counter() - waited
            result = self._train(batch)
            seconds = time.perf_counter() - waited
            self._advance(batch, seconds)
            self._record(batch, result, seconds, data_wait)
            del began
            finished, asked = self._finished(), result.stop_requested
            if self._validation_is_due() or (finished and not asked):
                self._validate()
                finished = self._finished()
                self._save()
            elif asked or self._save_is_due():
                self._save()
            if finished or asked:
                break
        self._stop_bar()
        if asked and not finished:
            self.say(f"stopped on request at step {self.progress.step}, saved; the same command resumes")
            return EXIT_REQUEUE
        self.say(f"finished at step {self.progress.step}: {self._why_finished()}")
        self._say_results()
        return 0

    # ------------------------------------------------------------------ one step

    def _train(self, batch: Batch) -> StepResult:
        train, at = self.config.train, self.progress
        steps = self.stream.steps_per_epoch(at.epoch)
        done = (at.epoch + at.step_in_epoch / steps) / train.max_epochs
        self._lr = learning_rate(
            train.lr,
            step=at.step + 1,
            warmup_steps=train.warmup_steps,
            done=done,
            decay=train.decay,
            final_fraction=train.final_lr_fraction,
        )
        asked = self.stop.signal is not None
        return train_step(self.model, batch, step=at.step + 1, lr=self._lr, stop_requested=asked)

    def _advance(self, batch: Batch, seconds: float) -> None:
        at = self.progress
        at.step += 1
        at.train_seconds += seconds
        at.epoch, at.step_in_epoch = batch.epoch, batch.step + 1
        if at.step_in_epoch == self.stream.steps_per_epoch(batch.epoch):
            at.epoch, at.step_in_epoch = batch.epoch + 1, 0

    def _record(self, batch: Batch, result: StepResult, seconds: float, data_wait: float) -> None:
        step = self.progress.step
        if self.bar is not None:
            self.bar.update(1)
            self.bar.set_postfix(loss=f"{result.loss:.4f}", refresh=False)
        if self.log is None or not (step == 1 or step % self.config.train.log_every_steps == 0):
            return
        slots = max(1, batch.item_ids.numel())
        self.log.write(
            step,
            {
                "train/loss": result.loss,
                "train/epoch": self.progress.epoch
                + self.progress.step_in_epoch / self.stream.steps_per_epoch(batch.epoch),
                "optim/lr": self._lr,
                "optim/grad_norm": result.grad_norm,
                "perf/events_per_s": result.num_targets / seconds,
                "perf/step_ms": 1e3 * seconds,
                "perf/data_wait_ms": 1e3 * data_wait,
                "perf/padding_fraction": float((batch.item_ids == 0).sum()) / slots,
                "comm/table_bytes": result.table_bytes,
                "memory/peak_gib": peak_memory_gib(self.world),
            },
        )

    # ------------------------------------------------------------------ validation, saving, the end

    def _validation_is_due(self) -> bool:
        every, at = self.config.train.eval_every_steps, self.progress
        return at.step_in_epoch == 0 if every is None else at.step % every == 0

    def _save_is_due(self) -> bool:
        every = self.config.train.checkpoint_every_steps
        return every is not None and self.progress.step % every == 0

    def _validate(self) -> None:
        result = self._evaluate_validation()
        at, values = self.progress, result.flat()
        metric = self.config.train.metric
        if metric not in values:
            raise ConfigError(
                f"train.metric={metric!r}: is not measured; take one of {', '.join(sorted(values)[:6])}, ..."
            )
        at.validations_since_best += 1
        if at.best_value is None or values[metric] > at.best_value:
            at.best_value, at.best_step, at.validations_since_best = values[metric], at.step, 0
        if self.log is not None:
            self.log.write(at.step, {f"eval_{name}": value for name, value in values.items()})
            self.log.write(at.step, {"perf/eval_s": result.seconds})
        star = " *" if at.best_step == at.step else ""
        self.say(
            f"step {at.step}  epoch {at.epoch}  train {at.train_seconds:.0f} s  {metric} {values[metric]:.4f}{star}"
        )

    def _evaluate_validation(self) -> Evaluation:
        self.model.engine.train(False)
        return evaluate(
            self.model.engine,
            self.model.table,
            self.dataset,
            self.config,
            "validation",
            max_users=self.config.evaluation.max_validation_users,
        )

    def _save(self) -> None:
        at = self.progress
        save_checkpoint(
            self.folder.checkpoints,
            self.model.engine,
            self.model.table,
            step=at.step,
            extra={"progress": dataclasses.asdict(at), "dataset_id": self.dataset.dataset_id},
        )
        if self.world.is_rank0:
            self._write_best()
            best = set() if at.best_step is None else {f"step-{at.best_step:09d}"}
            prune_checkpoints(self.folder.checkpoints, best, self.config.train.keep_checkpoints)

    def _write_best(self) -> None:
        at = self.progress
        if at.best_step is not None:
            write_json(
                self.folder.best_file,
                {
                    "checkpoint": f"step-{at.best_step:09d}",
                    "metric": self.config.train.metric,
                    "value": at.best_value,
                    "step": at.best_step,
                },
            )

    def _resume(self) -> None:
        checkpoint, problems = latest_checkpoint(self.folder.checkpoints)
        for problem in problems:
            self.say(f"warning: {problem}; taking the one before it")
        if checkpoint is not None:
            load_checkpoint(checkpoint, self.model.engine, self.model.table)
            self.progress = Progress(**checkpoint.state["progress"])
            if self.world.is_rank0:
                self._write_best()
            self.say(f"resuming from {checkpoint.path} (step {checkpoint.step})")

    def _finished(self) -> bool:
        return self._why_finished() is not None

    def _why_finished(self) -> str | None:
        train, at = self.config.train, self.progress
        if at.epoch >= train.max_epochs:
            return f"train.max_epochs {train.max_epochs} done"
        if train.max_steps is not None and at.step >= train.max_steps:
            return f"train.max_steps {train.max_steps} done"
        if train.max_minutes is not None and at.train_seconds >= 60 * train.max_minutes:
            return f"train.max_minutes {train.max_minutes:g} are up"
        if train.patience is not None and at.validations_since_best >= train.patience:
            return f"no better {train.metric} in {train.patience} validations"
        return None

    # ------------------------------------------------------------------ what a person sees

    def say(self, line: str) -> None:
        """One line on rank 0's terminal."""
        if self.world.is_rank0:
            tqdm.write(line, file=sys.stdout)
            sys.stdout.flush()

    def _describe(self) -> None:
        config, dataset, world, plan = (
            self.config,
            self.dataset,
            self.world,
            self.stream.plan(self.progress.epoch),
        )
        table = {name: size / 2**20 for name, size in self.model.table.bytes_per_rank().items()}
        weights = sum(getattr(p, "ds_numel", p.numel()) for p in self.model.encoder.parameters())
        lines = [
            f"data     {dataset.path}: {dataset.num_users:,} users, {dataset.num_items:,} items, {dataset.num_events:,} events",
            f"model    {config.encoder.model}: {config.encoder.num_blocks} blocks of width {config.encoder.d_model}, "
            f"context length {config.context_length}, {weights:,} encoder weights, loss {config.loss.name}",
            f"table    {dataset.num_items:,} x {config.encoder.d_model}, {config.table.update}: "
            + ", ".join(f"{name} {size:,.1f} MiB" for name, size in table.items())
            + " per rank",
            f"steps    {plan.num_steps} per epoch of {config.data.rows_per_step} rows ({plan.num_targets:,} targets, "
            f"{100 * plan.padding_fraction:.1f} % padding), at most {config.train.max_epochs} epochs",
            f"ranks    {world.world_size} on {world.device.type} ({world.launcher}), ZeRO stage {config.engine.zero_stage}, "
            f"{config.engine.precision}, {torch.get_num_threads()} threads each",
            f"run      {self.folder.path}; watch it with: tensorboard --logdir {self.folder.path}",
        ]
        for line in lines:
            self.say(line)

    def _start_bar(self) -> None:
        if self.world.is_rank0 and sys.stdout.isatty():
            train, at = self.config.train, self.progress
            total = self.stream.steps_per_epoch(at.epoch) * train.max_epochs
            total = total if train.max_steps is None else min(total, train.max_steps)
            self.bar = tqdm(total=total, initial=at.step, unit="step", dynamic_ncols=True)

    def _stop_bar(self) -> None:
        if self.bar is not None:
            self.bar.close()
        if self.log is not None:
            self.log.close()

    def _say_results(self) -> None:
        at, run = self.progress, self.folder.path
        if at.best_step is not None:
            self.say(
                f"best     {self.config.train.metric} {at.best_value:.4f} at step {at.best_step} (validation)"
            )
        self.say(f"next     longplay evaluate {run} --split test")


def peak_memory_gib(world: World) -> float:
    """Peak memory of this rank: of the GPU where there is one, else of the process."""
    if world.device.type == "cuda":
        return torch.cuda.max_memory_allocated() / 2**30
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20


def register(subparsers: Any) -> None:
    """Add `train` to the `longplay` command."""
    parser = subparsers.add_parser(
        "train",
        help="train a recommender, or go on training it",
        description="Train RECIPE on a prepared dataset. Settings of the recipe are overridden by --section.name value, "
        "for example --train.lr 0.001 --encoder.num_blocks 2 --context_length 500 --seed 1.",
    )
    add_arguments(parser)
    parser.set_defaults(func=run, takes_overrides=True)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("recipe", help="demo, ml1m, gru4rec, sasrec, recmamba, mambarec or moematrrec")
    parser.add_argument("--data", type=Path, required=True, help="folder made by `longplay prepare`")
    # torchrun under Python 3.11 takes a script's --run for its own --run-path; hence the second name.
    parser.add_argument(
        *("--run", "--run-dir"),
        type=Path,
        required=True,
        metavar="DIR",
        help="folder of this run; an existing one is resumed (under torchrun write --run-dir)",
    )


def run(args: argparse.Namespace, overrides: list[str]) -> int:
    """The command; returns its exit code."""
    config = resolve(args.recipe, get_recipe(args.recipe), overrides)
    dataset = Dataset.open(args.data)
    folder = RunFolder(args.run)
    begun = folder.check(config, dataset)
    check_stream(dataset, config.data, world_size=read_environment(os.environ)[2])
    stop = StopRequest()
    world = init_world(device=config.train.device, timeout_s=config.train.timeout_s)
    if world.is_rank0 and not begun:
        folder.create(config, dataset, args.data)
    if not begun and world.world_size > 1:
        torch.distributed.barrier()
    code = Training(config, dataset, folder, world, stop).run()
    close_world()
    return code


if __name__ == "__main__":
    from longplay.launch.cli import main

    sys.exit(main(["train", *sys.argv[1:]]))
