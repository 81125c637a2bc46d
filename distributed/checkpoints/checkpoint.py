"""One atomic directory per checkpoint, readable by any number of ranks, with nothing in it to unpickle.

    checkpoints/step-000001200/
        encoder.safetensors                  fp32 weights and Adam moments, whole
        table-000000000-000001708.safetensors rows [0, 1708) of the item table and their optimizer state
        state.json                           step, counters, what the caller adds, and every file's size and
        sha256

torch.distributed.checkpoint could hold the same, but its metadata file is a pickle; row ranges in safetensors
need no more code and let a rank of another world size read just the rows it owns. `checkpoint_writer` writes
a directory under another name and renames it when every byte is on disk: one with its final name is whole.
"""

import hashlib
import json
import shutil
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from longplay.common.checksums import sha256_of
from longplay.common.tensor_file import TensorFile, read_tensors
from longplay.distributed.engine import EncoderEngine
from longplay.distributed.runtime.errors import CheckpointError
from longplay.distributed.runtime.world import World
from longplay.distributed.table.item_table import ItemTable

SCHEMA_VERSION = 2


@dataclass(frozen=True, kw_only=True)
class Checkpoint:
    """A checkpoint on disk: its directory and the content of its state.json."""

    path: Path
    state: Mapping[str, Any]

    @property
    def step(self) -> int:
        return int(self.state["step"])


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
        engine.load_state(read_tensors(checkpoint.path / "encoder.safetensors"), steps=checkpoint.step)
    _read_rows(checkpoint.path, table, weights_only=engine is None)
    table.state_was_filled(int(state["table_steps"]))


def load_encoder_weights(checkpoint: Checkpoint, encoder: torch.nn.Module) -> None:
    """Fill an encoder that no engine holds, for evaluation and inference.

    Raises:
        CheckpointError: the names or shapes of the weights differ from the encoder's.
    """
    saved = read_tensors(checkpoint.path / "encoder.safetensors")
    weights = {k.removeprefix("weight/"): v for k, v in saved.items() if k.startswith("weight/")}
    try:
        missing = encoder.load_state_dict(weights, strict=False).missing_keys
    except RuntimeError as error:
        raise CheckpointError(f"{checkpoint.path}: its encoder is another: {error}") from None
    parameters = {name for name, _ in encoder.named_parameters()}
    lacking = sorted(parameters.intersection(missing))
    if lacking:
        raise CheckpointError(f"{checkpoint.path}: has no weights for {', '.join(lacking[:3])}")


def checkpoint_name(step: int) -> str:
    """The folder's; names sort as their steps do."""
    return f"step-{step:09d}"


def latest_checkpoint(root: Path, world: World | None = None) -> tuple[Checkpoint | None, dict[Path, str]]:
    """The newest whole checkpoint under `root`, None if there is none at all; and what is wrong with each
    newer one.

    Args:
        world: where several ranks take part: each checks some of the files, and all agree. Every rank must
            call.
    Raises:
        CheckpointError: there are checkpoints and none is whole; on every rank alike.
    """
    problems: dict[Path, str] = {}
    paths = sorted(root.glob("step-*"), reverse=True)
    if world is not None and world.world_size > 1:
        listings: list[Any] = [None] * world.world_size
        torch.distributed.all_gather_object(listings, paths)
        paths = listings[0]
    for path in paths:
        try:
            return open_checkpoint(path, world), problems
        except CheckpointError as error:
            problems[path] = str(error)
    if problems:
        raise CheckpointError(f"no checkpoint in {root} is whole: {'; '.join(problems.values())}")
    return None, problems


def open_checkpoint(path: Path, world: World | None = None) -> Checkpoint:
    """Read a checkpoint's state and check every file against its recorded size and sha256.

    Args:
        world: as in `latest_checkpoint`. Every rank must call.
    Raises:
        CheckpointError: it is not there, not readable by this version, or not whole; on every rank alike.
    """
    world = world or World()
    state, problem = None, None
    try:
        state = _read_state(path)
        _check_files(path, sorted(state["files"].items())[world.rank :: world.world_size])
    except CheckpointError as error:
        problem = str(error)
    if world.world_size > 1:
        found: list[Any] = [None] * world.world_size
        torch.distributed.all_gather_object(found, problem)
        problem = next((each for each in found if each is not None), None)
    if problem is not None:
        raise CheckpointError(problem)
    assert state is not None
    return Checkpoint(path=path, state=state)


def _read_state(path: Path) -> dict[str, Any]:
    try:
        state = json.loads((path / "state.json").read_text())
    except FileNotFoundError:
        raise CheckpointError(f"{path}: there is no checkpoint (no state.json)") from None
    except (OSError, ValueError) as error:
        raise CheckpointError(f"{path}/state.json: cannot be read ({error})") from None
    if not isinstance(state, dict) or state.get("schema_version") != SCHEMA_VERSION:
        found = state.get("schema_version") if isinstance(state, dict) else None
        raise CheckpointError(f"{path}: schema version {found} is not {SCHEMA_VERSION}")
    recorded = state.pop("sha256", None)
    if recorded != state_sha256(state):
        raise CheckpointError(f"{path}/state.json: its content differs from what was written (sha256)")
    return state


def _check_files(path: Path, files: Iterable[tuple[str, Mapping[str, Any]]]) -> None:
    for name, recorded in files:
        file = path / name
        if not file.is_file() or file.stat().st_size != recorded["bytes"]:
            raise CheckpointError(
                f"{file}: is missing or not {recorded['bytes']} bytes long; the checkpoint is torn"
            )
        try:
            found = sha256_of(file)
        except OSError as error:
            raise CheckpointError(f"{file}: cannot be read ({error.strerror})") from None
        if found != recorded["sha256"]:
            raise CheckpointError(
                f"{file}: its content differs from what was written (sha256); it is damaged"
            )


def state_sha256(state: Mapping[str, Any]) -> str:
    """The checksum of a state.json, itself left out."""
    return hashlib.sha256(json.dumps(state, sort_keys=True).encode()).hexdigest()


def prune_checkpoints(root: Path, keep: set[str], last: int, damaged: Collection[Path] = ()) -> None:
    """Delete all but the `last` newest checkpoints and those named in `keep`; one rank only.

    Args:
        damaged: are deleted too, whatever their number.
    """
    paths = sorted(path for path in root.glob("step-*") if path not in damaged)
    older = [path for path in paths[: max(0, len(paths) - last)] if path.name not in keep]
    for path in (*older, *damaged):
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
        with TensorFile(file) as tensors:
            absent = sorted(set(targets) - set(tensors.names()))
            if absent:
                raise CheckpointError(
                    f"{file}: holds no {', '.join(absent)}; take the row optimizer it was trained with"
                )
            for name, target in targets.items():
                tensors.read_rows(name, low - start, target[low - first : high - first])
        filled += high - low
    if filled != table.num_rows:
        raise CheckpointError(
            f"{path}: holds only {filled} of the {table.num_rows} rows from {first} to {last}"
        )
