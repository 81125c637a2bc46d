"""One folder per checkpoint: atomic, readable at any world size, without pickles.

    checkpoints/step-000001200/
        encoder.safetensors                    fp32 weights and Adam moments
        table-000000000-000001708.safetensors  rows [0, 1708) of the item table and their optimizer state
        state.json                             step, counters, the caller's values, file sizes and sha256

`writer` writes a folder under a temporary name and renames it when all files are on disk, so a folder with
its final name is complete. Each rank reads only the rows that it owns, at any world size.
torch.distributed.checkpoint is not used because its metadata file is a pickle.
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
    """A checkpoint on disk: its folder and the content of its state.json."""

    path: Path
    state: Mapping[str, Any]

    @property
    def step(self) -> int:
        """Number of optimizer steps before the save."""
        return int(self.state["step"])


def load_checkpoint(checkpoint: Checkpoint, engine: EncoderEngine | None, table: ItemTable) -> None:
    """Load a checkpoint of any world size. Collective.

    Args:
        engine: loads the encoder and the optimizer states; None loads only the table's weights.

    Raises:
        CheckpointError: it belongs to another table, or rows or tensors are missing.
    """
    state = checkpoint.state
    for field, value in (("num_items", table.num_items), ("width", table.width)):
        if state[field] != value:
            raise CheckpointError(f"{checkpoint.path}: {field} is {state[field]}, but {value} in this run")
    if engine is not None:
        if state["table_update"] != table.config.update:
            raise CheckpointError(
                f"{checkpoint.path}: was trained with table.update {state['table_update']}, "
                f"not {table.config.update}; use the same update, or another --run folder"
            )
        engine.load_state(read_tensors(checkpoint.path / "encoder.safetensors"), steps=checkpoint.step)
    _read_rows(checkpoint.path, table, weights_only=engine is None)
    table.finish_loading(int(state["table_steps"]))


def load_encoder_weights(checkpoint: Checkpoint, encoder: torch.nn.Module) -> None:
    """Load the weights of an encoder that has no engine, for evaluation and inference.

    Raises:
        CheckpointError: the names or shapes of the weights differ from the encoder's.
    """
    saved = read_tensors(checkpoint.path / "encoder.safetensors")
    weights = {k.removeprefix("weight/"): v for k, v in saved.items() if k.startswith("weight/")}
    try:
        missing = encoder.load_state_dict(weights, strict=False).missing_keys
    except RuntimeError as error:
        raise CheckpointError(f"{checkpoint.path}: does not fit this encoder: {error}") from None
    parameters = {name for name, _ in encoder.named_parameters()}
    lacking = sorted(parameters.intersection(missing))
    if lacking:
        raise CheckpointError(f"{checkpoint.path}: has no weights for {', '.join(lacking[:3])}")


def checkpoint_name(step: int) -> str:
    """Return the folder name of a checkpoint; names sort by step."""
    return f"step-{step:09d}"


def latest_checkpoint(root: Path, world: World | None = None) -> tuple[Checkpoint | None, dict[Path, str]]:
    """Find the newest complete checkpoint under `root`. Collective if `world` is given.

    Args:
        world: the ranks that share the work: each checks some of the files, and all return the same result.
    Returns:
        The checkpoint, or None if there are no checkpoints; and path -> problem of each newer, damaged one.
    Raises:
        CheckpointError: all checkpoints are damaged. Raised on every rank.
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
        raise CheckpointError(f"all checkpoints in {root} are damaged: {'; '.join(problems.values())}")
    return None, problems


def open_checkpoint(path: Path, world: World | None = None) -> Checkpoint:
    """Read a checkpoint's state and compare every file with its recorded size and sha256.

    Args:
        world: as in `latest_checkpoint`. Collective if given.
    Raises:
        CheckpointError: it is missing, of another format version, or damaged. Raised on every rank.
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
        raise CheckpointError(f"{path}: is not a checkpoint, because it has no state.json") from None
    except (OSError, ValueError) as error:
        raise CheckpointError(f"{path}/state.json: cannot be read ({error})") from None
    if not isinstance(state, dict) or state.get("schema_version") != SCHEMA_VERSION:
        found = state.get("schema_version") if isinstance(state, dict) else None
        raise CheckpointError(f"{path}: schema version {found}, but this version reads {SCHEMA_VERSION}")
    recorded = state.pop("sha256", None)
    if recorded != state_sha256(state):
        raise CheckpointError(f"{path}/state.json: is damaged, its sha256 differs")
    return state


def _check_files(path: Path, files: Iterable[tuple[str, Mapping[str, Any]]]) -> None:
    for name, recorded in files:
        file = path / name
        if not file.is_file() or file.stat().st_size != recorded["bytes"]:
            raise CheckpointError(f"{file}: is missing or not {recorded['bytes']} bytes long")
        try:
            found = sha256_of(file)
        except OSError as error:
            raise CheckpointError(f"{file}: cannot be read ({error.strerror})") from None
        if found != recorded["sha256"]:
            raise CheckpointError(f"{file}: is damaged, its sha256 differs")


def state_sha256(state: Mapping[str, Any]) -> str:
    """Return the checksum of a state without its "sha256" entry."""
    return hashlib.sha256(json.dumps(state, sort_keys=True).encode()).hexdigest()


def prune_checkpoints(root: Path, keep: set[str], last: int, damaged: Collection[Path] = ()) -> None:
    """Delete old and damaged checkpoints; call it on one rank.

    Args:
        keep: folder names to keep.
        last: number of newest checkpoints to keep, not counting the damaged ones.
        damaged: folders to delete in any case.
    """
    paths = sorted(path for path in root.glob("step-*") if path not in damaged)
    older = [path for path in paths[: max(0, len(paths) - last)] if path.name not in keep]
    for path in (*older, *damaged):
        shutil.rmtree(path, ignore_errors=True)


# ---------------------------------------------------------------------- helpers


def _read_rows(path: Path, table: ItemTable, *, weights_only: bool) -> None:
    """Copy this rank's rows from the files that hold them."""
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
                    f"{file}: has no {', '.join(absent)}; use the row optimizer that the run was trained with"
                )
            for name, target in targets.items():
                tensors.read_rows(name, low - start, target[low - first : high - first])
        filled += high - low
    if filled != table.num_rows:
        raise CheckpointError(
            f"{path}: holds only {filled} of the {table.num_rows} rows from {first} to {last}"
        )
