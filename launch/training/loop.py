"""One run from where it stands to its end: train, validate, save, resume."""

import dataclasses
import time

import torch

from longplay.common.atomic import write_json
from longplay.data_shards.storage.dataset import Dataset
from longplay.data_shards.stream.train_stream import Batch, TrainStream
from longplay.distributed.checkpoints.checkpoint import (
    Checkpoint,
    checkpoint_name,
    latest_checkpoint,
    load_checkpoint,
    prune_checkpoints,
)
from longplay.distributed.checkpoints.writer import CheckpointWriter
from longplay.distributed.runtime.errors import CheckpointError
from longplay.distributed.runtime.memory import memory_is_enough_for, peak_memory_gib
from longplay.distributed.runtime.phases import STEP, phase
from longplay.distributed.runtime.watchdog import Watchdog
from longplay.distributed.runtime.world import World
from longplay.launch.console.exit_codes import EXIT_REQUEUE
from longplay.launch.console.progress import ProgressDisplay
from longplay.launch.estimates.fitting import check_plan
from longplay.launch.estimates.memory_estimate import plan_run
from longplay.launch.evaluation.evaluation import Evaluation, evaluate
from longplay.launch.run_folders.run_folder import MetricsLog, RunFolder, git_commit
from longplay.launch.settings.config import RunConfig
from longplay.launch.settings.data_arguments import (
    check_agreement,
    share_skipped,
)
from longplay.launch.settings.resolving import to_json
from longplay.launch.training.model import Model, build_model
from longplay.launch.training.profiling import StepProfile
from longplay.launch.training.progress import Progress, StopRequest
from longplay.launch.training.schedule import learning_rate
from longplay.launch.training.step_display import StepDisplay
from longplay.launch.training.step_pipeline import StepPipeline
from longplay.launch.training.summary import describe
from longplay.launch.training.train_step import StepResult, train_step

_SURELY_TOO_LARGE = 1.25  # times the memory there is: plans have been off by up to 14 %


class Training:
    """One run from where it stands to its end. Building and running it is collective.

    Args:
        profile_steps: how many steps to profile, see `StepProfile`.
    """

    def __init__(
        self,
        config: RunConfig,
        dataset: Dataset,
        folder: RunFolder,
        world: World,
        *,
        stop: StopRequest,
        watchdog: Watchdog,
        profile_steps: int = 0,
    ) -> None:
        self.config, self.dataset, self.folder, self.world = config, dataset, folder, world
        self.stop, self.watchdog = stop, watchdog
        self.display = ProgressDisplay(enabled=world.is_rank0)
        self.git_commit = git_commit()
        agreed = set(dataset.store.skipped)
        self.stream = TrainStream(
            dataset,
            config.data,
            rank=world.rank,
            world_size=world.world_size,
            pin_memory=world.device.type == "cuda",
        )
        self._see_that_it_fits()
        began = time.perf_counter()
        checkpoint = self._last_checkpoint()
        check_s = time.perf_counter() - began
        self.model: Model = build_model(config, dataset, world, initial_rows=checkpoint is None)
        check_agreement(dataset, agreed, config, world)
        self.progress = Progress()
        self.profile = StepProfile(folder.path / "profile", world, profile_steps)
        self.writer = CheckpointWriter(
            folder.checkpoints,
            world,
            background=config.train.background_save,
            timeout_s=config.train.timeout_s,
        )
        if checkpoint is not None:
            self._resume(checkpoint, check_s)
        self.log = MetricsLog(folder.path, from_step=self.progress.step) if world.is_rank0 else None

    def _see_that_it_fits(self) -> None:
        """Says what memory the run will take; rank 0 alone, since its failure ends the others.

        Raises:
            ConfigError: it surely does not fit; names two settings with which it does.
        """
        if self.world.is_rank0:
            plan = plan_run(
                self.config,
                self.dataset,
                world_size=self.world.world_size,
                device_type=self.world.device.type,
                epoch_order=self.stream.order(0),
            )
            self.display.print(plan.line())
            check_plan(plan, self.config, self.dataset, certainty=_SURELY_TOO_LARGE)

    def run(self) -> int:
        """Train until the end or a request to stop; the process's exit code."""
        why = self.progress.why_finished(self.config.train)
        if why is not None:
            self.display.print(f"nothing left to do: {why}")
            return 0
        with self.display:
            asked = self._train_until_finished_or_asked()
            self.watchdog.heartbeat("finishing the last checkpoint")
            self.writer.wait()
        self._print(self.profile.close())
        share_skipped(self.dataset, self.world)
        skipped = self.dataset.skipped_summary()
        if skipped is not None:
            self.display.print(f"skipped  {skipped}")
        if self.log is not None:
            self.log.close()
        at, run = self.progress, self.folder.path
        why = at.why_finished(self.config.train)
        if asked and why is None:
            self.display.print(f"stopped on request at step {at.step}, saved; the same command resumes")
            return EXIT_REQUEUE
        self.display.print(f"finished at step {at.step}: {why}")
        if at.best_step is not None:
            metric = self.config.train.metric
            self.display.print(f"best     {metric} {at.best_value:.4f} at step {at.best_step} (validation)")
        self.display.print(f"next     longplay evaluate {run} --split test")
        return 0

    def _train_until_finished_or_asked(self) -> bool:
        """The training loop; whether any rank was asked to stop."""
        config, at = self.config, self.progress
        plan = self.stream.order(at.epoch)
        self._print(describe(config, self.dataset, self.model, plan, self.folder.path))
        shown = StepDisplay(self.display, config.train)
        self.stream.load_state_dict({"epoch": at.epoch, "step": at.step_in_epoch})
        ahead = StepPipeline(
            self.model, iter(self.stream), first_step=at.step + 1, heartbeat=self.watchdog.heartbeat
        )
        self._try_validation()
        while True:
            began = time.perf_counter()
            with phase(STEP):
                planned = ahead.take()
                batch = planned.batch
                steps_per_epoch = self.stream.steps_per_epoch(batch.epoch)
                lr = self._learning_rate(steps_per_epoch)
                with memory_is_enough_for(f"step {planned.step}"):
                    result = train_step(
                        self.model,
                        planned,
                        lr=lr,
                        stop_requested=self.stop.asked,
                        pipeline=None if self._is_last(batch, steps_per_epoch) else ahead,
                    )
            seconds, data_wait = time.perf_counter() - began, ahead.take_data_wait_s()
            self._print(self.profile.step_done())
            at.advance(
                epoch=batch.epoch, step_in_epoch=batch.step, steps_per_epoch=steps_per_epoch, seconds=seconds
            )
            shown.step_done(
                at,
                steps_per_epoch=steps_per_epoch,
                loss=result.loss,
                num_events=result.num_targets,
                seconds=seconds,
            )
            self.writer.check()
            if at.step == 1 or at.step % config.train.log_every_steps == 0:
                share_skipped(self.dataset, self.world)
                self._log_step(batch, result, lr=lr, seconds=seconds, data_wait=data_wait)

            # Whether the time is up is rank 0's clock to say, or ranks could disagree; the request is global.
            finished = self._agree(at.why_finished(config.train) is not None)
            if self._validation_is_due() or (finished and not result.stop_requested):
                self._validate()
                finished = self._agree(at.why_finished(config.train) is not None)
                self._save()
            elif result.stop_requested or self._save_is_due():
                self._save()
            if finished or result.stop_requested:
                return result.stop_requested

    def _print(self, lines: list[str]) -> None:
        for line in lines:
            self.display.print(line)

    def _is_last(self, batch: Batch, steps_per_epoch: int) -> bool:
        """Whether no step follows, as far as steps and epochs say."""
        train = self.config.train
        ended = batch.epoch + 1 == train.max_epochs and batch.step + 1 == steps_per_epoch
        return ended or self.progress.step + 1 == train.max_steps

    def _learning_rate(self, steps_per_epoch: int) -> float:
        train = self.config.train
        return learning_rate(
            train.lr,
            step=self.progress.step + 1,
            warmup_steps=train.warmup_steps,
            done=self.progress.epochs_done(steps_per_epoch) / train.max_epochs,
            decay=train.decay,
            final_fraction=train.final_lr_fraction,
        )

    def _agree(self, mine: bool) -> bool:
        """Rank 0's answer, on every rank. Costs a collective only where clocks decide."""
        if self.config.train.max_minutes is None or self.world.world_size == 1:
            return mine
        answer = torch.tensor([float(mine)], device=self.world.device)
        torch.distributed.broadcast(answer, 0)
        return bool(answer.item())

    # ------------------------------------------------------------------ validation and saving

    def _validation_is_due(self) -> bool:
        every, at = self.config.train.eval_every_steps, self.progress
        return at.step_in_epoch == 0 if every is None else at.step % every == 0

    def _save_is_due(self) -> bool:
        every = self.config.train.checkpoint_every_steps
        return every is not None and self.progress.step % every == 0

    def _try_validation(self) -> None:
        """One batch of a validation, so that one too large for memory is found now and not after an epoch.

        Training needs no such trial: all its steps have the shape of the first.
        """
        with memory_is_enough_for("a batch of the validation"):
            self._evaluate(max_rounds=1)

    def _evaluate(self, max_rounds: int | None = None) -> Evaluation:
        self.model.engine.train(False)
        return evaluate(
            self.model.engine,
            self.model.table,
            self.dataset,
            self.config,
            "validation",
            max_users=self.config.evaluation.max_validation_users,
            heartbeat=self.watchdog.heartbeat,
            max_rounds=max_rounds,
        )

    def _validate(self) -> None:
        at, metric = self.progress, self.config.train.metric
        result = self._evaluate()
        values = result.flat()
        at.note_validation(values[metric])
        if self.log is not None:
            shown = {f"eval_{name}": value for name, value in values.items() if not name.endswith("_se")}
            self.log.write(at.step, {**shown, "perf/eval_s": result.seconds})
            self.log.write_model(at.step, self.model.encoder.gate_weights(), self.model.table.shard)
        star = " *" if at.best_step == at.step else ""
        self.display.print(
            f"step {at.step}  epoch {at.epoch}  train {at.train_seconds:.0f} s  "
            f"{metric} {values[metric]:.4f}{star}"
        )

    def _save(self) -> None:
        self.watchdog.heartbeat(f"saving step {self.progress.step}")
        began = time.perf_counter()
        at, keep = dataclasses.replace(self.progress), self.config.train.keep_checkpoints

        def on_commit() -> None:
            self._write_best(at)
            best = set() if at.best_step is None else {checkpoint_name(at.best_step)}
            self.damaged.pop(self.folder.checkpoints / checkpoint_name(at.step), None)  # written anew
            prune_checkpoints(self.folder.checkpoints, best, keep, self.damaged)
            self.damaged.clear()

        self.writer.save(
            self.model.engine,
            self.model.table,
            step=at.step,
            extra={
                "progress": dataclasses.asdict(at),
                "dataset_id": self.dataset.dataset_id,
                "config": to_json(self.config),
                "git_commit": self.git_commit,
            },
            on_commit=on_commit,
        )
        if self.log is not None:
            self.log.write(at.step, {"perf/save_stall_s": time.perf_counter() - began})

    def _write_best(self, at: Progress) -> None:
        if at.best_step is not None:
            best = {"checkpoint": checkpoint_name(at.best_step), "metric": self.config.train.metric}
            write_json(self.folder.best_file, {**best, "value": at.best_value, "step": at.best_step})

    def _last_checkpoint(self) -> Checkpoint | None:
        """The one to go on from, None at the beginning; newer ones, if any, are damaged.

        Raises:
            CheckpointError: all are damaged. To begin anew would overwrite what a user may still restore.
        """
        root = self.folder.checkpoints
        try:
            checkpoint, self.damaged = latest_checkpoint(root, self.world)
        except CheckpointError as error:
            raise CheckpointError(
                f"{error}. Nothing was changed; restore one, or to begin anew remove {root}"
            ) from None
        for problem in self.damaged.values():
            self.display.print(f"warning: {problem}; taking the one before it")
        return checkpoint

    def _resume(self, checkpoint: Checkpoint, check_s: float) -> None:
        """Go on from a checkpoint that took `check_s` seconds to find and to check."""
        began = time.perf_counter()
        load_checkpoint(checkpoint, self.model.engine, self.model.table)
        self.progress = Progress(**checkpoint.state["progress"])
        if self.world.is_rank0:
            self._write_best(self.progress)
        seconds = check_s + time.perf_counter() - began
        self.display.print(
            f"resuming from {checkpoint.path} (step {checkpoint.step}, read in {seconds:.1f} s)"
        )

    # ------------------------------------------------------------------ scalars

    def _log_step(
        self, batch: Batch, result: StepResult, *, lr: float, seconds: float, data_wait: float
    ) -> None:
        if self.log is None:
            return
        slots = max(1, batch.item_ids.numel())
        store, skipped = self.dataset.store, {}
        if store.on_bad_shard == "skip":
            skipped = {
                "data/skipped_shards": len(store.skipped),
                "data/skipped_events": store.num_skipped_events,
            }
        self.log.write(
            self.progress.step,
            {
                "train/loss": result.loss,
                "train/epoch": self.progress.epochs_done(self.stream.steps_per_epoch(batch.epoch)),
                "optim/lr": lr,
                "optim/grad_norm": result.grad_norm,
                "perf/events_per_s": result.num_targets / seconds,
                "perf/step_ms": 1e3 * seconds,
                "perf/data_wait_ms": 1e3 * data_wait,
                "perf/padding_fraction": float((batch.item_ids == 0).sum()) / slots,
                "comm/table_bytes": result.table_bytes,
                "memory/peak_gib": peak_memory_gib(self.world),
                **skipped,
            },
        )
