"""Saving: one thread per rank writes its files, in the background from a copy in host memory.

The threads use no collectives, which would interleave with those of training. Each rank writes its files and
a small report of them to one folder. Rank 0's thread waits for all reports, adds state.json and renames the
folder. If a rank cannot write its files, the checkpoint never gets its final name.
"""

import itertools
import os
import re
import shutil
import threading
import time
import weakref
from collections.abc import Callable, Mapping
from contextlib import nullcontext, suppress
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor

from longplay.common.atomic import replace_folder, write_json
from longplay.common.checksums import FileInfo
from longplay.common.json_files import read_json, sealed
from longplay.common.tensor_file import write_tensors
from longplay.distributed.checkpoints.checkpoint import (
    SCHEMA_VERSION,
    checkpoint_name,
    is_own_checkpoint,
)
from longplay.distributed.engine import EncoderEngine
from longplay.distributed.runtime.collectives import all_reduce_max
from longplay.distributed.runtime.errors import CheckpointError
from longplay.distributed.runtime.free_memory import free_memory
from longplay.distributed.runtime.heartbeat import Progress, no_progress
from longplay.distributed.runtime.waiting import waiting
from longplay.distributed.runtime.world import World, local_world_size
from longplay.distributed.table.item_table import ItemTable
from longplay.distributed.zero.deepspeed_env import comm

Background = Literal["auto", "always", "never"]
_SHARE_OF_FREE_MEMORY = 0.5
_POLL_S = 0.05
_AGREE_S = 1.0
_REPORT = "written-by-rank-{:05d}.json"
_PARTIAL = re.compile(r"\.writing-step-[0-9]{9,}-[0-9a-f]{16}")


@dataclass(frozen=True)
class _Job:
    """The files that one rank writes for a checkpoint; `state` is state.json without the file list."""

    final: Path
    partial: Path
    tensors: Mapping[str, Mapping[str, Tensor]]
    state: Mapping[str, Any]
    on_commit: Callable[[], None]


class CheckpointWriter:
    """Writes a rank's checkpoints, one at a time. Collective.

    Args:
        root: the existing folder of the `step-NNN` folders.
        background: whether a thread writes the files while training continues. This needs a copy of the
            rank's rows and their state in host memory; `auto` does it if half of the free memory can hold the
            copy.
        timeout_s: time that rank 0 waits for the other ranks' files while none of them grows.
        owner: values of state.json that identify the run. A folder that has the name of a new checkpoint but
            is not the run's is moved to `step-NNN.moved-1`.
        progress: the watchdog's; called whenever a block is written, so that a long save is no hang.
    """

    def __init__(
        self,
        root: Path,
        world: World,
        *,
        background: Background = "auto",
        timeout_s: float = 600.0,
        owner: Mapping[str, Any] | None = None,
        progress: Progress = no_progress,
    ) -> None:
        self.root, self.world, self._owner, self._progress = root, world, owner or {}, progress
        self._background, self._timeout_s = background, timeout_s
        self._thread: threading.Thread | None = None
        self._failure: BaseException | None = None
        self._waits_for_others = False
        # Only on rank 0: a network file system may show the new folder to other ranks later.
        self._folder = os.open(root, os.O_RDONLY) if world.is_rank0 else None  # open, to keep its inode
        if self._folder is not None:
            weakref.finalize(self, os.close, self._folder)
        nonce = torch.frombuffer(bytearray(os.urandom(8)), dtype=torch.int64).to(world.device)
        if world.world_size > 1:
            comm.broadcast(nonce, 0)
        # Distinguishes this run's unfinished saves from those of earlier runs.
        with waiting("the name of the saves"):
            self._suffix = f"{int(nonce) & 0xFFFF_FFFF_FFFF_FFFF:016x}"
        if world.is_rank0:
            for path in root.glob(".writing-*"):
                if _PARTIAL.fullmatch(path.name):
                    shutil.rmtree(path, ignore_errors=True)

    def save(
        self,
        engine: EncoderEngine,
        table: ItemTable,
        *,
        step: int,
        extra: Mapping[str, Any],
        on_commit: Callable[[], None] = lambda: None,
    ) -> None:
        """Start writing `root/step-NNN`; return when training may continue. Collective.

        Args:
            step: optimizer steps so far.
            extra: JSON values of the caller, returned in `Checkpoint.state`.
            on_commit: called on rank 0, possibly in another thread, when the checkpoint has its final name.
        Raises:
            OSError, CheckpointError: this save or the previous one failed; earlier checkpoints are complete.
        """
        self.wait()
        encoder = engine.state()
        rows = table.state() if table.num_rows else {}
        background = self._in_background(rows)
        if background:
            with waiting("the copy of the rows"):
                rows = {name: value.detach().to("cpu", copy=True) for name, value in rows.items()}
        first, last = table.first_row, table.first_row + table.num_rows
        tensors = {f"table-{first:09d}-{last:09d}.safetensors": rows} if rows else {}
        if self.world.is_rank0:
            tensors["encoder.safetensors"] = encoder
        name = checkpoint_name(step)
        state = {
            "schema_version": SCHEMA_VERSION,
            "step": step,
            "num_items": table.num_items,
            "width": table.width,
            "table_update": table.config.update,
            "table_steps": table.step_count,
            "world_size": self.world.world_size,
            **extra,
            **self._owner,
        }
        unfinished = self.root / f".writing-{name}-{self._suffix}"
        job = _Job(self.root / name, unfinished, tensors, state, on_commit)
        self._thread = threading.Thread(target=self._run, args=(job,), name="longplay-save", daemon=True)
        self._thread.start()
        if not background:
            self.wait()

    def check(self) -> None:
        """Raise the error of a background save that has failed; do not wait for one that runs.

        Raises:
            OSError, CheckpointError: the save failed.
        """
        if self._failure is not None:
            failure, self._failure = self._failure, None
            raise failure

    def wait(self) -> None:
        """Wait until every rank has written its files and the save is complete. Collective.

        The ranks agree every second, so that none waits in a collective for longer than it may.

        Raises:
            OSError, CheckpointError: the save failed.
        """
        while self._thread is not None:
            with waiting("the files of the other ranks") if self._waits_for_others else nullcontext():
                self._thread.join(_AGREE_S)
            self.check()
            writing = torch.tensor([float(self._thread.is_alive())], device=self.world.device)
            with waiting("the files of the other ranks"):
                if not all_reduce_max(writing, self.world).item():
                    self._thread = None
        self.check()

    def _in_background(self, rows: Mapping[str, Tensor]) -> bool:
        if self._background != "auto":
            return self._background == "always"
        needed = sum(value.numel() * value.element_size() for value in rows.values())
        free = free_memory()[0] / local_world_size(self.world.world_size)
        return needed <= _SHARE_OF_FREE_MEMORY * free

    def _run(self, job: _Job) -> None:
        self._waits_for_others = False
        try:
            self._write(job)
        except BaseException as error:
            self._failure = error

    def _write(self, job: _Job) -> None:
        """Write this rank's files; on rank 0 also commit the checkpoint."""
        self._check_root()
        job.partial.mkdir(exist_ok=True)
        written = [
            write_tensors(
                job.partial / name, tensors, progress=partial(self._note_progress, job.partial / name)
            )
            for name, tensors in job.tensors.items()
        ]
        report = {file.name: {"bytes": file.num_bytes, "sha256": file.sha256} for file in written}
        write_json(job.partial / _REPORT.format(self.world.rank), report)
        if not self.world.is_rank0:
            return
        state = {**job.state, "files": self._gather(job.partial)}
        write_json(job.partial / "state.json", sealed(state))
        for rank in range(self.world.world_size):
            (job.partial / _REPORT.format(rank)).unlink()
        self._check_root()
        self._move_away(job.final)
        replace_folder(job.partial, job.final)
        job.on_commit()

    def _note_progress(self, file: Path) -> None:
        """Note progress here, and by the file's time for rank 0: flushing does not change the size."""
        self._progress()
        with suppress(OSError):
            os.utime(file)

    def _move_away(self, path: Path) -> None:
        """Rename what has a new checkpoint's name, unless it is the run's own earlier save of this step."""
        if (path.exists() or path.is_symlink()) and not is_own_checkpoint(path, self._owner):
            names = (path.with_name(f"{path.name}.moved-{number}") for number in itertools.count(1))
            path.rename(next(name for name in names if not name.exists() and not name.is_symlink()))

    def _check_root(self) -> None:
        with suppress(OSError):
            found = os.stat(self.root)
            if self._folder is None or os.path.samestat(found, os.fstat(self._folder)):
                return
        raise CheckpointError(
            f"{self.root}: the folder was removed or replaced during the run; no checkpoint can be saved"
        )

    def _gather(self, folder: Path) -> dict[str, Any]:
        """Wait for all ranks; return every file's size and checksum."""
        files: dict[str, Any] = {}
        seen, since = None, time.monotonic()
        self._waits_for_others = True
        for rank in range(self.world.world_size):
            path = folder / _REPORT.format(rank)
            while not path.exists():
                self._check_root()
                if not folder.exists():
                    raise CheckpointError(f"{folder}: the folder was removed during the save")
                now = _sizes_and_times(folder)
                if now != seen:
                    seen, since = now, time.monotonic()
                elif time.monotonic() - since > self._timeout_s:
                    raise CheckpointError(
                        f"{folder}: rank {rank} has written nothing for {self._timeout_s:g} s; "
                        "put the run folder on a file system that all nodes share"
                    )
                time.sleep(_POLL_S)
            files |= read_json(path, dict[str, FileInfo])
        self._waits_for_others = False
        return files


def _sizes_and_times(folder: Path) -> dict[str, tuple[int, int]]:
    """Return the size and the modification time of each file; files that vanish meanwhile are left out."""
    found = {}
    for path in folder.iterdir():
        with suppress(FileNotFoundError):
            status = path.stat()
            found[path.name] = status.st_size, status.st_mtime_ns
    return found
