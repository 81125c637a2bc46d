"""Print and record the steps, validations, saves and the end of a run."""

from longplay.data_shards.storage.dataset import Dataset
from longplay.data_shards.stream.train_stream import Batch
from longplay.distributed.runtime.memory import peak_memory_gib
from longplay.launch.console.progress import ProgressDisplay
from longplay.launch.evaluation.evaluation import Evaluation
from longplay.launch.run_folders.metrics_log import MetricsLog
from longplay.launch.run_folders.run_folder import RunFolder
from longplay.launch.settings.bad_shards import share_skipped
from longplay.launch.settings.imports import imported
from longplay.launch.training.model import Model
from longplay.launch.training.pace import Pace
from longplay.launch.training.progress import Progress
from longplay.launch.training.step_display import StepDisplay
from longplay.launch.training.train_step import StepResult


class RunLog:
    """Rank 0 prints to the display and writes scalars to the run folder; other ranks do neither.

    Args:
        progress: progress of the run, which the training loop updates.
    """

    def __init__(
        self,
        folder: RunFolder,
        model: Model,
        dataset: Dataset,
        display: ProgressDisplay,
        progress: Progress,
    ) -> None:
        self._folder, self._model, self._dataset, self._progress = folder, model, dataset, progress
        self._display, self._steps = display, StepDisplay(display, model.config.train)
        self._steps_per_epoch = 1
        is_rank0 = model.world.is_rank0
        self._metrics = MetricsLog(folder.path, from_step=progress.step) if is_rank0 else None

    def print(self, lines: list[str]) -> None:
        """Print lines."""
        for line in lines:
            self._display.print(line)

    def step_done(
        self,
        batch: Batch,
        result: StepResult,
        *,
        pace: Pace,
        steps_per_epoch: int,
        lr: float,
        seconds: float,
        data_wait_s: float,
    ) -> None:
        """Show a step, and record every `train.log_every_steps`-th one. Collective.

        Args:
            pace: the pace of this process, with the step.
            seconds: duration of the step.
            data_wait_s: the part of it that was spent waiting for the batch.
        """
        at, self._steps_per_epoch = self._progress, steps_per_epoch
        self._steps.step_done(
            at,
            pace=pace,
            steps_per_epoch=steps_per_epoch,
            loss=result.loss,
            num_events=result.num_targets,
            seconds=seconds,
        )
        if at.step != 1 and at.step % self._model.config.train.log_every_steps != 0:
            return
        share_skipped(self._dataset, self._model.world)
        if self._metrics is None:
            return
        scalars = {
            "train/loss": result.loss,
            "train/epoch": at.epochs_done(steps_per_epoch),
            "optim/lr": lr,
            "optim/grad_norm": result.grad_norm,
            "perf/events_per_s": result.num_targets / seconds,
            "perf/step_ms": 1e3 * seconds,
            "perf/data_wait_ms": 1e3 * data_wait_s,
            "perf/padding_fraction": float((batch.item_ids == 0).sum()) / max(1, batch.item_ids.numel()),
            "comm/table_bytes": result.table_bytes,
            "memory/peak_gib": peak_memory_gib(self._model.world),
        }
        store = self._dataset.store
        if store.on_bad_shard == "skip":
            scalars["data/skipped_shards"] = len(store.skipped)
            scalars["data/skipped_events"] = store.num_skipped_events
        self._metrics.write(at.step, scalars)

    def validation_done(self, result: Evaluation) -> None:
        """Print the metric that selects the best checkpoint, and record all metrics."""
        at, metric, values = self._progress, self._model.config.train.metric, result.flat()
        if self._metrics is not None:
            shown = {f"eval_{name}": value for name, value in values.items() if not name.endswith("_se")}
            self._metrics.write(at.step, {**shown, "perf/eval_s": result.seconds})
            model = self._model
            self._metrics.write_model(at.step, model.encoder.gate_weights(), model.table.shard)
        star = " *" if at.best_step == at.step else ""
        epochs = round(at.epochs_done(self._steps_per_epoch), 3)
        self._display.print(
            f"step {at.step}  epoch {epochs:g}  train {at.train_seconds:.0f} s  "
            f"{metric} {values[metric]:.4f}{star}"
        )

    def save_done(self, stall_s: float) -> None:
        """Record how long training waited for a save."""
        if self._metrics is not None:
            self._metrics.write(self._progress.step, {"perf/save_stall_s": stall_s})

    def close(self) -> None:
        """Print how the run ended and what to do next, and close the files."""
        if self._metrics is not None:
            self._metrics.close()
        skipped = self._dataset.skipped_summary()
        if skipped is not None:
            self._display.print(f"skipped  {skipped}")
        at, train = self._progress, self._model.config.train
        why = at.why_complete(train)
        if why is None:
            self._display.print(f"stopped on request at step {at.step} and saved; the same command resumes")
            return
        self._display.print(f"finished at step {at.step}: {why}")
        if at.best_step is not None:
            self._display.print(
                f"best     {train.metric} {at.best_value:.4f} at step {at.best_step} (validation)"
            )
        options = "".join(f" --import {module}" for module in imported())
        self._display.print(f"next     longplay evaluate {self._folder.path} --split test{options}")
