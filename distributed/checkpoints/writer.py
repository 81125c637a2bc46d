"""Saving while training goes on: a copy in host memory, then files written by a thread of each rank.

The threads use no collectives, which would mix with those of training. Each rank writes its part and a small
account of it into one directory; rank 0's thread waits for all accounts, adds state.json and renames the
directory. A checkpoint that any rank could not write never gets its final name.
"""

import json
import os
import shutil
import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import psutil
import torch
from torch import Tensor

from longplay.common.atomic import replace_folder, write_json
from longplay.common.tensor_file import write_tensors
from longplay.distributed.checkpoints.checkpoint import (
    SCHEMA_VERSION,
    checkpoint_name,
    state_sha256,
)
from longplay.distributed.engine import EncoderEngine
from longplay.distributed.runtime.errors import CheckpointError
from longplay.distributed.runtime.world import World, local_world_size
from longplay.distributed.table.item_table import ItemTable
from longplay.distributed.zero.deepspeed_env import comm

Background = Literal["auto", "always", "never"]
_SHARE_OF_FREE_MEMORY = 0.5
_POLL_S = 0.05
_ACCOUNT = "written-by-rank-{:05d}.json"


@dataclass(frozen=True)
class _Job:
    """What one rank has to write of a checkpoint; rank 0's `state` lacks only the files."""

    final: Path
    partial: Path
    tensors: Mapping[str, Mapping[str, Tensor]]
    state: Mapping[str, Any]
    on_commit: Callable[[], None]


class CheckpointWriter:
    """Writes a rank's checkpoints, one at a time. Building it is collective.

    Args:
        root: the folder for `step-NNN` directories; it must exist.
        background: whether files are written by a thread while training goes on, which takes a copy of the
            rank's rows and their state. `auto`: if half of the free memory can hold it.
        timeout_s: how long rank 0 waits for the others' parts.
    """

    def __init__(
        self, root: Path, world: World, *, background: Background = "auto", timeout_s: float = 600.0
    ) -> None:
        self.root, self.world = root, world
        self._background, self._timeout_s = background, timeout_s
        self._thread: threading.Thread | None = None
        self._failure: BaseException | None = None
        nonce = torch.frombuffer(bytearray(os.urandom(8)), dtype=torch.int64).to(world.device)
        if world.world_size > 1:
            comm.broadcast(nonce, 0)
        self._suffix = (
            f"{int(nonce) & 0xFFFF_FFFF_FFFF_FFFF:016x}"  # tells our unfinished saves from a dead run's
        )
        if world.is_rank0:
            for path in root.glob(".writing-*"):
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
        """Begin to write `root/step-NNN`; returns when training may go on. Every rank must call.

        Args:
            extra: JSON values of the caller, found again in `Checkpoint.state`.
            on_commit: called on rank 0, perhaps by another thread, when the checkpoint has its final name.
        Raises:
            OSError, CheckpointError: this save or the one before failed; what was saved earlier is whole.
        """
        self.wait()
        encoder = engine.state()
        rows = table.state() if table.num_rows else {}
        background = self._in_background(rows)
        if background:
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
        }
        partial = self.root / f".writing-{name}-{self._suffix}"
        job = _Job(self.root / name, partial, tensors, state, on_commit)
        if background:
            self._thread = threading.Thread(target=self._run, args=(job,), name="longplay-save", daemon=True)
            self._thread.start()
        else:
            self._write(job)

    def check(self) -> None:
        """Raise what a save in the background failed with, if it has; never waits.

        Raises:
            OSError, CheckpointError: it failed.
        """
        if self._failure is not None:
            failure, self._failure = self._failure, None
            raise failure

    def wait(self) -> None:
        """Wait until this rank's part of the save that was begun is written; on rank 0 until all of it is.

        Raises:
            OSError, CheckpointError: it failed.
        """
        if self._thread is not None:
            self._thread.join()
            self._thread = None
        self.check()

    def _in_background(self, rows: Mapping[str, Tensor]) -> bool:
        if self._background != "auto":
            return self._background == "always"
        needed = sum(value.numel() * value.element_size() for value in rows.values())
        free = psutil.virtual_memory().available / local_world_size(self.world.world_size)
        return needed <= _SHARE_OF_FREE_MEMORY * free

    def _run(self, job: _Job) -> None:
        try:
            self._write(job)
        except BaseException as error:
            self._failure = error

    def _write(self, job: _Job) -> None:
        """Writes this rank's part, and on rank 0 makes the checkpoint whole."""
        self._check_root()
        job.partial.mkdir(exist_ok=True)
        written = [write_tensors(job.partial / name, tensors) for name, tensors in job.tensors.items()]
        account = {file.name: {"bytes": file.num_bytes, "sha256": file.sha256} for file in written}
        write_json(job.partial / _ACCOUNT.format(self.world.rank), account)
        if not self.world.is_rank0:
            return
        state = {**job.state, "files": self._gather(job.partial)}
        write_json(job.partial / "state.json", {**state, "sha256": state_sha256(state)})
        for rank in range(self.world.world_size):
            (job.partial / _ACCOUNT.format(rank)).unlink()
        replace_folder(job.partial, job.final)
        job.on_commit()

    def _check_root(self) -> None:
        if not self.root.is_dir():
            raise CheckpointError(
                f"{self.root}: the folder was removed while the run was going; nothing can be saved there"
            )

    def _gather(self, partial: Path) -> dict[str, Any]:
        """Every file's size and checksum, once all ranks have written theirs."""
        files: dict[str, Any] = {}
        deadline = time.monotonic() + self._timeout_s
        for rank in range(self.world.world_size):
            path = partial / _ACCOUNT.format(rank)
            while not path.exists():
                if time.monotonic() > deadline:
                    raise CheckpointError(
                        f"{partial}: rank {rank} has not written its part within {self._timeout_s:g} s; "
                        "is the run folder on a file system that all nodes share?"
                    )
                self._check_root()
                if not partial.exists():
                    raise CheckpointError(f"{partial}: was removed while it was written")
                time.sleep(_POLL_S)
            files |= json.loads(path.read_text())
        return files


def save_checkpoint(
    root: Path, engine: EncoderEngine, table: ItemTable, *, step: int, extra: Mapping[str, Any]
) -> Path:
    """Write `root/step-NNN`, wait until it is whole, and return it. Every rank must call.

    Raises:
        OSError, CheckpointError: it failed; what was saved before is whole.
    """
    root.mkdir(parents=True, exist_ok=True)
    writer = CheckpointWriter(root, table.world, background="never")
    writer.save(engine, table, step=step, extra=extra)
    if table.world.world_size > 1:
        comm.barrier()
    return root / checkpoint_name(step)
