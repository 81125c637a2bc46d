"""One atomic directory per checkpoint, readable by any number of ranks, with nothing in it to unpickle.

    checkpoints/step-000001200/
        encoder.safetensors                  fp32 weights and Adam moments, whole (rank 0 writes)
        table-000000000-000001708.safetensors rows [0, 1708) of the item table and their optimizer state
        state.json                           step, counters, what the caller adds, and every file's size and
        sha256

torch.distributed.checkpoint could hold the same, but its metadata file is a pickle; row ranges in safetensors
need no more code and let a rank of another world size read just the rows it owns. A directory is written
under another name and renamed when every byte is on disk, so that one with its final name is whole.
"""

import hashlib
import json
import os
import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor

from longplay.distributed.collectives import all_reduce_sum
from longplay.distributed.deepspeed_env import comm
from longplay.distributed.engine import EncoderEngine
from longplay.distributed.errors import CheckpointError
from longplay.distributed.item_table import ItemTable
from longplay.distributed.world import World

SCHEMA_VERSION = 1
_HASH_BLOCK = 1 << 22
_READ_ROWS = 1 << 18


@dataclass(frozen=True, kw_only=True)
class Checkpoint:
    """A checkpoint on disk: its directory and the content of its state.json."""

    path: Path
    state: Mapping[str, Any]

    @property
    def step(self) -> int:
        return int(self.state["step"])


def save_checkpoint(
    root: Path, engine: EncoderEngine, table: ItemTable, *, step: int, extra: Mapping[str, Any]
) -> Path:
    """Write `root/step-NNN` and return it. Every rank must call.

    Args:
        extra: JSON values of the caller, returned in `Checkpoint.state`.
    Raises:
        OSError: the disk is full or the folder cannot be written; what was written before stays whole.
    """
    world = table.world
    final = root / f"step-{step:09d}"
    partial = root / f".writing-step-{step:09d}"
    encoder = engine.state()
    if world.is_rank0:
        shutil.rmtree(partial, ignore_errors=True)
        partial.mkdir(parents=True)
    _barrier(world)
    if table.num_rows:
        rows = {name: value.detach().cpu().contiguous() for name, value in table.state().items()}
        name = f"table-{table.first_row:09d}-{table.first_row + table.num_rows:09d}.safetensors"
        _save_tensors(rows, partial / name)
    if world.is_rank0:
        _save_tensors(encoder, partial / "encoder.safetensors")
    _barrier(world)
    names = sorted(path.name for path in partial.iterdir())
    mine = {name: _sha256(partial / name) for name in names[world.rank :: world.world_size]}
    hashes = _gather_hashes(mine, names, world)
    if world.is_rank0:
        files = {name: {"bytes": (partial / name).stat().st_size, "sha256": hashes[name]} for name in names}
        state = {
            "schema_version": SCHEMA_VERSION,
            "step": step,
            "num_items": table.num_items,
            "width": table.width,
            "table_update": table.config.update,
            "table_steps": table.step_count,
            "world_size": world.world_size,
            **extra,
            "files": files,
        }
        write_json(partial / "state.json", state)
        shutil.rmtree(final, ignore_errors=True)
        os.rename(partial, final)
        _sync_directory(root)
    _barrier(world)
    return final


def load_checkpoint(checkpoint: Checkpoint, engine: EncoderEngine | None, table: ItemTable) -> None:
    """Fill table (and encoder, unless None) from a checkpoint of any world size. Every rank must call.

    Raises:
        CheckpointError: it belongs to another table, or lacks rows or tensors.
    """
    state = checkpoint.state
    for field, value in (("num_items", table.num_items), ("width", table.width)):
        if state[field] != value:
            raise CheckpointError(f"{checkpoint.path}: its {field} is {state[field]}, this run's is {value}")
    if engine is not None:
        if state["table_update"] != table.config.update:
            raise CheckpointError(
                f"{checkpoint.path}: was trained with table.update {state['table_update']}, "
                f"not {table.config.update}; take the same, or another --run folder"
            )
        engine.load_state(load_file(checkpoint.path / "encoder.safetensors"), steps=checkpoint.step)
    _read_rows(checkpoint.path, table, weights_only=engine is None)
    table.state_was_filled(int(state["table_steps"]))


def load_encoder_weights(checkpoint: Checkpoint, encoder: torch.nn.Module) -> None:
    """Fill an encoder that no engine holds, for evaluation and inference.

    Raises:
        CheckpointError: the names or shapes of the weights differ from the encoder's.
    """
    saved = load_file(checkpoint.path / "encoder.safetensors")
    weights = {k.removeprefix("weight/"): v for k, v in saved.items() if k.startswith("weight/")}
    try:
        missing = encoder.load_state_dict(weights, strict=False).missing_keys
    except RuntimeError as error:
        raise CheckpointError(f"{checkpoint.path}: its encoder is another: {error}") from None
    parameters = {name for name, _ in encoder.named_parameters()}
    lacking = sorted(parameters.intersection(missing))
    if lacking:
        raise CheckpointError(f"{checkpoint.path}: has no weights for {', '.join(lacking[:3])}")


def latest_checkpoint(root: Path) -> tuple[Checkpoint | None, list[str]]:
    """The newest whole checkpoint under `root`, and a line for each newer one that is damaged."""
    problems = []
    for path in sorted(root.glob("step-*"), reverse=True):
        try:
            return open_checkpoint(path), problems
        except CheckpointError as error:
            problems.append(str(error))
    return None, problems


def open_checkpoint(path: Path) -> Checkpoint:
    """Read a checkpoint's state and check every file against its recorded size and sha256.

    Raises:
        CheckpointError: it is not there, not readable by this version, or not whole.
    """
    try:
        state = json.loads((path / "state.json").read_text())
    except FileNotFoundError:
        raise CheckpointError(f"{path}: there is no checkpoint (no state.json)") from None
    except (OSError, ValueError) as error:
        raise CheckpointError(f"{path}/state.json: cannot be read ({error})") from None
    if state.get("schema_version") != SCHEMA_VERSION:
        raise CheckpointError(f"{path}: schema version {state.get('schema_version')} is not {SCHEMA_VERSION}")
    for name, recorded in state["files"].items():
        file = path / name
        if not file.is_file() or file.stat().st_size != recorded["bytes"]:
            raise CheckpointError(
                f"{file}: is missing or not {recorded['bytes']} bytes long; the checkpoint is torn"
            )
        if _sha256(file) != recorded["sha256"]:
            raise CheckpointError(
                f"{file}: its content differs from what was written (sha256); it is damaged"
            )
    return Checkpoint(path=path, state=state)


def write_json(path: Path, value: Any) -> None:
    """Write `value` so that a crash leaves the old file or the new one, never half of it."""
    partial = path.with_name(f".{path.name}.writing")
    with open(partial, "w") as file:
        json.dump(value, file, indent=2)
        file.write("\n")
        file.flush()
        os.fsync(file.fileno())
    os.replace(partial, path)


def prune_checkpoints(root: Path, keep: set[str], last: int) -> None:
    """Delete all but the `last` newest checkpoints and those named in `keep`; rank 0 only."""
    paths = sorted(root.glob("step-*"))
    for path in paths[: max(0, len(paths) - last)]:
        if path.name not in keep:
            shutil.rmtree(path, ignore_errors=True)
    for path in root.glob(".writing-*"):
        shutil.rmtree(path, ignore_errors=True)


# ---------------------------------------------------------------------- parts


def _read_rows(path: Path, table: ItemTable, *, weights_only: bool) -> None:
    """Copy this rank's rows out of whichever files hold them."""
    targets = table.state()
    if weights_only:
        targets = {"weight": targets["weight"]}
    first, last = table.first_row, table.first_row + table.num_rows
    filled = 0
    for file in sorted(path.glob("table-*.safetensors")):
        start, stop = (int(part) for part in file.stem.split("-")[1:])
        low, high = max(first, start), min(last, stop)
        if low >= high:
            continue
        with safe_open(file, framework="pt") as tensors:
            absent = sorted(set(targets) - set(tensors.keys()))
            if absent:
                raise CheckpointError(
                    f"{file}: holds no {', '.join(absent)}; take the row optimizer it was trained with"
                )
            for name, target in targets.items():
                source = tensors.get_slice(name)
                for at in range(low, high, _READ_ROWS):
                    to = min(at + _READ_ROWS, high)
                    target[at - first : to - first].copy_(source[at - start : to - start])
        filled += high - low
    if filled != table.num_rows:
        raise CheckpointError(
            f"{path}: holds only {filled} of the {table.num_rows} rows from {first} to {last}"
        )


def _save_tensors(tensors: dict[str, Tensor], path: Path) -> None:
    save_file(tensors, path)
    with open(path, "rb") as file:
        os.fsync(file.fileno())


def _sha256(path: Path) -> str:
    digest = hashlib.sha256()
    with open(path, "rb", buffering=0) as file:
        while block := file.read(_HASH_BLOCK):
            digest.update(block)
    return digest.hexdigest()


def _gather_hashes(mine: dict[str, str], names: list[str], world: World) -> dict[str, str]:
    """Every file's hash, of which each rank has computed some. Every rank must call."""
    table = torch.zeros(len(names), 32, dtype=torch.int32, device=world.device)
    for row, name in enumerate(names):
        if name in mine:
            table[row] = torch.tensor(list(bytes.fromhex(mine[name])), dtype=torch.int32)
    all_reduce_sum(table, world)
    return {name: bytes(row.tolist()).hex() for name, row in zip(names, table.cpu(), strict=True)}


def _barrier(world: World) -> None:
    if world.world_size > 1:
        comm.barrier()


def _sync_directory(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    os.fsync(descriptor)
    os.close(descriptor)
