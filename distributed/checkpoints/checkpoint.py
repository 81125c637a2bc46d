"""One folder per checkpoint: atomic, readable at any world size, without pickles.

    checkpoints/step-000001200/
        encoder.safetensors                    fp32 weights and Adam moments
        table-000000000-000001708.safetensors  rows [0, 1708) of the item table and their optimizer state
        state.json                             step, counters, the caller's values, file sizes and sha256

`writer` writes a folder under a temporary name and renames it when all files are on disk, so a folder with
its final name is complete. Each rank reads only the rows that it owns, at any world size.
A folder is a run's checkpoint if its name is exact, its state.json is intact and has the values that identify
the run, called `owner` here. Other folders and files are neither loaded nor changed.
torch.distributed.checkpoint is not used because its metadata file is a pickle.
"""

import re
import reprlib
import shutil
from collections.abc import Collection, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import torch
from pydantic import ConfigDict, Field, with_config
from typing_extensions import TypedDict

from longplay.common.checksums import FileInfo, sha256_of
from longplay.common.json_files import JsonFileError, JsonObject, Natural, parse_json, read_content
from longplay.common.tensor_file import TensorFile
from longplay.distributed.checkpoints.encoder_file import STATE, WEIGHTS, read_encoder
from longplay.distributed.engine import EncoderEngine
from longplay.distributed.runtime.collectives import all_gather_object, broadcast_object
from longplay.distributed.runtime.errors import CheckpointError
from longplay.distributed.runtime.heartbeat import Progress, no_progress
from longplay.distributed.runtime.world import World
from longplay.distributed.table.item_table import ItemTable

SCHEMA_VERSION = 2
_NAME = re.compile(r"step-([0-9]{9,})")
_TABLE_FILE = re.compile(r"table-([0-9]{9,})-([0-9]{9,})\.safetensors")


@with_config(ConfigDict(extra="allow"))
class CheckpointState(TypedDict):
    """The fields of state.json that loading needs; `files` has every other file of the folder by name."""

    step: Natural
    num_items: Natural
    width: Natural
    table_update: str
    table_steps: Natural
    files: dict[Annotated[str, Field(pattern=r"^[A-Za-z0-9_-]+\.safetensors$")], FileInfo]


@dataclass(frozen=True, kw_only=True)
class Checkpoint:
    """A checkpoint on disk: its folder and the content of its state.json."""

    path: Path
    state: Mapping[str, Any]

    @property
    def step(self) -> int:
        """Number of optimizer steps before the save."""
        return int(self.state["step"])


def load_checkpoint(
    checkpoint: Checkpoint,
    engine: EncoderEngine | None,
    table: ItemTable,
    *,
    progress: Progress = no_progress,
) -> None:
    """Load a checkpoint of any world size. Collective.

    Args:
        engine: loads the encoder and the optimizer states; None loads only the table's weights.
        progress: the watchdog's; called after each block of rows.

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
        engine.load_state(read_encoder(checkpoint.path, engine.parameters, STATE), steps=checkpoint.step)
    _read_rows(checkpoint, table, weights_only=engine is None, progress=progress)
    table.finish_loading(int(state["table_steps"]))


def load_encoder_weights(checkpoint: Checkpoint, encoder: torch.nn.Module) -> None:
    """Load the weights of an encoder that has no engine, for evaluation and inference.

    Raises:
        CheckpointError: the names, shapes or dtypes of the weights differ from the encoder's.
    """
    saved = read_encoder(checkpoint.path, dict(encoder.named_parameters()), WEIGHTS)
    weights = {name.removeprefix("weight/"): value for name, value in saved.items()}
    encoder.load_state_dict(weights, strict=False)  # buffers are not saved


def table_files(checkpoint: Checkpoint) -> Iterator[tuple[Path, int, int]]:
    """Yield the item table's files that state.json lists, as (file, first row, last row + 1)."""
    for name in sorted(checkpoint.state["files"]):
        match = _TABLE_FILE.fullmatch(name)
        if match:
            yield checkpoint.path / name, int(match[1]), int(match[2])


@contextmanager
def open_table_file(file: Path, num_rows: int) -> Iterator[TensorFile]:
    """Open a file of the item table, whose tensors have `num_rows` rows.

    Raises:
        CheckpointError: one has another number of rows.
    """
    with TensorFile(file) as tensors:
        for name in tensors.names():
            if tensors.shape(name)[:1] != (num_rows,):
                raise CheckpointError(
                    f"{file}: {name} has the shape {tensors.shape(name)}, not {num_rows} rows"
                )
        yield tensors


def checkpoint_name(step: int) -> str:
    """Return the folder name of a checkpoint."""
    return f"step-{step:09d}"


def checkpoint_step(path: Path) -> int | None:
    """Return the step in the name of a checkpoint's folder; None if the name is not exactly one."""
    match = _NAME.fullmatch(path.name)
    step = int(match[1]) if match else -1
    return step if checkpoint_name(step) == path.name else None


def latest_checkpoint(
    root: Path,
    world: World | None = None,
    *,
    owner: Mapping[str, Any] | None = None,
    shape: type[CheckpointState] = CheckpointState,
    progress: Progress = no_progress,
) -> tuple[Checkpoint | None, dict[Path, str]]:
    """Find the run's newest intact checkpoint under `root`. Collective if `world` is given.

    Args:
        world: the ranks that share the work: each checks some of the files, and all return the same result.
        owner: values of state.json that the run's checkpoints have; None accepts any run's.
        shape: the fields that state.json must have.
        progress: the watchdog's; called after each block that is checked.
    Returns:
        The checkpoint, or None if there are no checkpoints; and path -> problem of each newer one that is
        damaged or another run's.
    Raises:
        CheckpointError: no checkpoint can be loaded. Raised on every rank.
    """
    problems: dict[Path, str] = {}
    paths = _checkpoint_folders(root)[::-1]
    paths = broadcast_object(paths, world or World())
    for path in paths:
        try:
            checkpoint = open_checkpoint(path, world, owner=owner, shape=shape, progress=progress)
        except CheckpointError as error:
            problems[path] = str(error)
            continue
        if checkpoint.step == checkpoint_step(path):
            return checkpoint, problems
        problems[path] = f"{path}: is a renamed checkpoint of step {checkpoint.step}"
    if problems:
        raise CheckpointError(f"no checkpoint in {root} can be loaded: {'; '.join(problems.values())}")
    return None, problems


def open_checkpoint(
    path: Path,
    world: World | None = None,
    *,
    owner: Mapping[str, Any] | None = None,
    shape: type[CheckpointState] = CheckpointState,
    progress: Progress = no_progress,
) -> Checkpoint:
    """Read a checkpoint's state and compare every file with its recorded size and sha256.

    Args:
        world, owner, shape, progress: as in `latest_checkpoint`. Collective if `world` is given.
    Raises:
        CheckpointError: it is missing, of another format version, damaged or another run's. Raised on every
            rank.
    """
    world = world or World()
    state, problem = None, None
    try:
        state = _read_state(path, owner or {}, shape)
        _check_files(path, sorted(state["files"].items())[world.rank :: world.world_size], progress)
    except CheckpointError as error:
        problem = str(error)
    problem = next((each for each in all_gather_object(problem, world) if each is not None), None)
    if problem is not None:
        raise CheckpointError(problem)
    assert state is not None
    return Checkpoint(path=path, state=state)


def is_own_checkpoint(path: Path, owner: Mapping[str, Any]) -> bool:
    """Return whether the run wrote this folder under this name. Its tensor files may be damaged."""
    try:
        state = _read_state(path, owner)
    except CheckpointError:
        return False
    return state.get("step") == checkpoint_step(path) and not path.is_symlink()


def _read_state(
    path: Path, owner: Mapping[str, Any], shape: type[CheckpointState] | None = None
) -> dict[str, Any]:
    file = path / "state.json"
    try:
        content = read_content(file)
        state = parse_json(content, JsonObject, file)
        found = state.get("schema_version")
        if found != SCHEMA_VERSION:
            raise CheckpointError(
                f"{path}: schema version {reprlib.repr(found)}, but this version reads {SCHEMA_VERSION}"
            )
        for field, value in owner.items():
            found = state.get(field)
            if found != value:
                different = f"its {field} is {reprlib.repr(found)}, not {value!r}"
                raise CheckpointError(f"{path}: is another run's checkpoint, {different}")
        if shape is not None:
            parse_json(content, shape, file)
    except FileNotFoundError:
        raise CheckpointError(f"{path}: is not a checkpoint, because it has no state.json") from None
    except JsonFileError as error:
        raise CheckpointError(str(error)) from None
    return state


def _check_files(path: Path, files: Iterable[tuple[str, Mapping[str, Any]]], progress: Progress) -> None:
    for name, recorded in files:
        file = path / name
        if not file.is_file() or file.stat().st_size != recorded["bytes"]:
            raise CheckpointError(f"{file}: is missing or not {recorded['bytes']} bytes long")
        try:
            found = sha256_of(file, progress)
        except OSError as error:
            raise CheckpointError(f"{file}: cannot be read ({error.strerror})") from None
        if found != recorded["sha256"]:
            raise CheckpointError(f"{file}: is damaged, its sha256 differs")


def prune_checkpoints(
    root: Path, keep: set[str], last: int, damaged: Collection[Path] = (), *, owner: Mapping[str, Any]
) -> None:
    """Delete the run's old and damaged checkpoints, and nothing else; call it on one rank.

    Args:
        keep: folder names to keep.
        last: number of newest checkpoints to keep, not counting the damaged ones.
        damaged: checkpoints to delete in any case.
        owner: as in `latest_checkpoint`.
    """
    own = [path for path in _checkpoint_folders(root) if is_own_checkpoint(path, owner)]
    intact = [path for path in own if path not in damaged]
    older = [path for path in intact[: max(0, len(intact) - last)] if path.name not in keep]
    for path in (*older, *(path for path in own if path in damaged)):
        shutil.rmtree(path, ignore_errors=True)


# ---------------------------------------------------------------------- helpers


def _checkpoint_folders(root: Path) -> list[Path]:
    """Return the paths under `root` with the exact name of a checkpoint, by step."""
    named = [(step, path) for path in root.glob("step-*") if (step := checkpoint_step(path)) is not None]
    return [path for _, path in sorted(named)]


def _read_rows(checkpoint: Checkpoint, table: ItemTable, *, weights_only: bool, progress: Progress) -> None:
    """Copy this rank's rows from those of the checkpoint's files that hold them."""
    targets = table.state()
    if weights_only:
        targets = {"weight": targets["weight"]}
    first, last = table.first_row, table.first_row + table.num_rows
    filled = 0
    for file, start, stop in table_files(checkpoint):
        low, high = max(first, start), min(last, stop)
        if low >= high:
            continue
        with open_table_file(file, stop - start) as tensors:
            absent = sorted(set(targets) - set(tensors.names()))
            if absent:
                raise CheckpointError(
                    f"{file}: has no {', '.join(absent)}; use the row optimizer that the run was trained with"
                )
            for name, target in targets.items():
                tensors.read_rows(name, low - start, target[low - first : high - first], progress)
        filled += high - low
    if filled != table.num_rows:
        raise CheckpointError(
            f"{checkpoint.path}: holds only {filled} of the {table.num_rows} rows from {first} to {last}"
        )
