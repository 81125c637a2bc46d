"""The checkpoints of one run: find the newest intact one, load it, save, and record the best one."""

import dataclasses
import time
from pathlib import Path

from longplay.common.atomic import write_json
from longplay.common.json_files import sealed
from longplay.distributed.checkpoints.checkpoint import (
    Checkpoint,
    checkpoint_name,
    latest_checkpoint,
    load_checkpoint,
    prune_checkpoints,
)
from longplay.distributed.checkpoints.writer import CheckpointWriter
from longplay.distributed.runtime.errors import CheckpointError
from longplay.distributed.runtime.watchdog import Watchdog
from longplay.distributed.runtime.world import World
from longplay.launch.console.progress import ProgressDisplay
from longplay.launch.run_folders.provenance import git_commit
from longplay.launch.run_folders.run_folder import RunFolder
from longplay.launch.settings.config import RunConfig
from longplay.launch.settings.resolving import to_json
from longplay.launch.settings.saved import changed_on_resume
from longplay.launch.training.model import Model
from longplay.launch.training.progress import Progress, RunState, read_progress


class RunCheckpoints:
    """Read and write the checkpoints of the run in `folder`. The constructor is collective.

    Attributes:
        newest: the newest intact checkpoint; None if the run has no checkpoints.
        saved: the progress that was loaded or saved last.

    Raises:
        CheckpointError: no checkpoint can be loaded. Starting over would overwrite checkpoints that the user
            might still restore.
    """

    def __init__(
        self,
        folder: RunFolder,
        config: RunConfig,
        world: World,
        *,
        watchdog: Watchdog,
        display: ProgressDisplay,
    ) -> None:
        self._folder, self._config, self._world = folder, config, world
        self._watchdog, self._display = watchdog, display
        self._owner = folder.owner()
        self._recorded = {
            "config": to_json(config),
            "git_commit": git_commit(),
        }
        began = time.perf_counter()
        self.newest, self._damaged = self._find_newest()
        self._check_s = time.perf_counter() - began
        self.saved = Progress()
        self._writer = CheckpointWriter(
            folder.checkpoints,
            world,
            background=config.train.background_save,
            timeout_s=config.train.timeout_s,
            owner=self._owner,
            progress=watchdog.progress,
        )

    def load(self, checkpoint: Checkpoint, model: Model) -> Progress:
        """Fill the model from the checkpoint and return the progress that it records. Collective."""
        began = time.perf_counter()
        self._watchdog.heartbeat(f"loading step {checkpoint.step}")
        load_checkpoint(checkpoint, model.engine, model.table, progress=self._watchdog.progress)
        progress = read_progress(checkpoint)
        changed, restart = changed_on_resume(checkpoint.state["config"], self._config)
        if restart:
            progress.restart_best()
        self.saved = dataclasses.replace(progress)
        if self._world.is_rank0:
            self._write_best(progress)
        seconds = self._check_s + time.perf_counter() - began
        self._display.print(
            f"resuming from {checkpoint.path} (step {checkpoint.step}, read in {seconds:.1f} s)"
        )
        if changed:
            best = "; the best validation is counted from here" if restart else ""
            self._display.print(f"changed  {'; '.join(changed)}{best}")
        return progress

    def save(self, model: Model, progress: Progress) -> float:
        """Save now or start a background save; return the seconds that training waited. Collective."""
        self._watchdog.heartbeat(f"saving step {progress.step}")
        began = time.perf_counter()
        self.saved = at = dataclasses.replace(progress)  # training continues while the checkpoint is written
        self._writer.save(
            model.engine,
            model.table,
            step=at.step,
            extra={"progress": dataclasses.asdict(at), **self._recorded},
            on_commit=lambda: self._on_commit(at),
        )
        return time.perf_counter() - began

    def raise_save_error(self) -> None:
        """Raise the error of a background save that has failed."""
        self._writer.check()

    def wait(self) -> None:
        """Wait until the last checkpoint is committed. Collective."""
        self._writer.wait()

    def _find_newest(self) -> tuple[Checkpoint | None, dict[Path, str]]:
        """Return the newest intact checkpoint, and why each newer one cannot be loaded. Collective."""
        root = self._folder.checkpoints
        try:
            newest, damaged = latest_checkpoint(
                root, self._world, owner=self._owner, shape=RunState, progress=self._watchdog.progress
            )
        except CheckpointError as error:
            raise CheckpointError(
                f"{error}. Nothing was changed; restore one, or remove {root} to start from the beginning"
            ) from None
        for problem in damaged.values():
            self._display.print(f"warning: {problem}; loading the one before it")
        return newest, damaged

    def _on_commit(self, at: Progress) -> None:
        """Record the best checkpoint and delete the ones that are no longer needed."""
        self._write_best(at)
        if at.best_step is None:  # the earlier one was of another metric
            self._folder.best_file.unlink(missing_ok=True)
        best = set() if at.best_step is None else {checkpoint_name(at.best_step)}
        self._damaged.pop(self._folder.checkpoints / checkpoint_name(at.step), None)  # overwritten
        keep = self._config.train.keep_checkpoints
        prune_checkpoints(self._folder.checkpoints, best, keep, self._damaged, owner=self._owner)
        self._damaged.clear()

    def _write_best(self, at: Progress) -> None:
        if at.best_step is not None:
            best = {"checkpoint": checkpoint_name(at.best_step), "metric": self._config.train.metric}
            write_json(self._folder.best_file, sealed({**best, "value": at.best_value, "step": at.best_step}))
