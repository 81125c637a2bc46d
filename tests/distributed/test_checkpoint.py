"""Checkpoints: other world sizes, damaged and incomplete folders, pruning, and background saves."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from support.ranks import run_ranks
from torch import nn
from torch.nn import functional as F

from longplay.common.json_files import sealed
from longplay.common.tensor_file import read_tensors, write_tensors
from longplay.distributed.checkpoints.checkpoint import (
    SCHEMA_VERSION,
    checkpoint_name,
    latest_checkpoint,
    load_checkpoint,
    load_encoder_weights,
    open_checkpoint,
    open_table_file,
    prune_checkpoints,
)
from longplay.distributed.checkpoints.writer import CheckpointWriter
from longplay.distributed.engine import EncoderEngine, EngineConfig
from longplay.distributed.runtime.errors import CheckpointError
from longplay.distributed.runtime.world import World
from longplay.distributed.table.config import ItemTableConfig
from longplay.distributed.table.item_table import ItemTable

NUM_ITEMS, WIDTH = 101, 6


def build(world: World, update: Any, stage: Any) -> tuple[nn.Module, ItemTable, EncoderEngine]:
    encoder = nn.Sequential(nn.Linear(WIDTH, 7), nn.Linear(7, WIDTH))
    table = ItemTable(ItemTableConfig(update=update), num_items=NUM_ITEMS, width=WIDTH, world=world, seed=1)
    return encoder, table, EncoderEngine(encoder, table, EngineConfig(zero_stage=stage), world)


def one_step(table: ItemTable, engine: EncoderEngine) -> None:
    items = torch.arange(1, 50) + 2 * table.world.rank
    exchange, index = table.make_exchange(items)
    rows = table.lookup(exchange)
    engine.backward(engine(F.embedding(index, rows)).square().sum(), last=True)
    assert rows.grad is not None
    table.add_row_gradients(exchange, rows.grad)
    engine.step(lr=0.01, loss=torch.ones(()), at="in a test")


def full_state(table: ItemTable, engine: EncoderEngine) -> dict[str, torch.Tensor]:
    """Return the whole encoder's state and a copy of this rank's table state."""
    return {**engine.state(), **{f"table/{name}": value.clone() for name, value in table.state().items()}}


def save(world: World, root: Path, update: str, stage: int) -> dict[str, torch.Tensor]:
    _, table, engine = build(world, update, stage)
    for _ in range(2):
        one_step(table, engine)
    root.mkdir(exist_ok=True)
    CheckpointWriter(root, world, background="never").save(engine, table, step=2, extra={"note": "kept"})
    return full_state(table, engine)


def load(world: World, root: Path, update: str, stage: int) -> dict[str, torch.Tensor]:
    _, table, engine = build(world, update, stage)
    checkpoint, problems = latest_checkpoint(root)
    assert checkpoint is not None
    assert not problems
    assert checkpoint.state["note"] == "kept"
    load_checkpoint(checkpoint, engine, table)
    loaded = full_state(table, engine)
    one_step(table, engine)  # training can continue
    return loaded


@pytest.mark.parametrize(
    ("update", "stages", "before", "after"),
    [
        ("row_sparse", (1, 3), 2, 3),
        ("row_sparse", (1, 3), 3, 1),
        ("zero_dense", (3, 3), 1, 2),
        ("zero_dense", (3, 3), 3, 2),
    ],
)
def test_a_checkpoint_loads_at_another_world_size_and_zero_stage(
    tmp_path: Path, update: str, stages: tuple[int, int], before: int, after: int
) -> None:
    saved = run_ranks(save, before, tmp_path, update, stages[0])
    loaded = run_ranks(load, after, tmp_path, update, stages[1])
    for name, value in saved[0].items():
        if name.startswith("table/"):
            whole = [torch.cat([part[name] for part in parts]) for parts in (saved, loaded)]
            assert torch.equal(*whole), name
        else:
            assert all(torch.equal(part[name], value) for part in loaded), name


def test_an_incomplete_or_damaged_checkpoint_is_never_loaded(tmp_path: Path) -> None:
    run_ranks(save, 1, tmp_path, "row_sparse", 1)
    (tmp_path / ".writing-step-000000009").mkdir()
    (tmp_path / "step-000000008").mkdir()
    checkpoint, problems = latest_checkpoint(tmp_path)
    assert checkpoint is not None
    assert checkpoint.step == 2
    empty = tmp_path / "step-000000008"
    assert problems == {empty: f"{empty}: is not a checkpoint, because it has no state.json"}

    for damage in ("bit", "length", "gone"):
        file = next(checkpoint.path.glob("table-*"))
        content = file.read_bytes()
        if damage == "bit":
            file.write_bytes(content[:-1] + bytes([content[-1] ^ 1]))
        elif damage == "length":
            file.write_bytes(content[:-1])
        else:
            file.unlink()
        with pytest.raises(CheckpointError, match=file.name):
            open_checkpoint(checkpoint.path)
        with pytest.raises(
            CheckpointError, match=f"no checkpoint in {tmp_path} can be loaded: .*{file.name}"
        ):
            latest_checkpoint(tmp_path)
        file.write_bytes(content)
    assert open_checkpoint(checkpoint.path).step == 2


def load_into_another_table(world: World, root: Path) -> str:
    table = ItemTable(ItemTableConfig(), num_items=NUM_ITEMS + 1, width=WIDTH, world=world, read_only=True)
    checkpoint, _ = latest_checkpoint(root)
    assert checkpoint is not None
    with pytest.raises(CheckpointError) as caught:
        load_checkpoint(checkpoint, None, table)
    return str(caught.value)


def test_a_checkpoint_of_another_table_or_encoder_is_rejected(tmp_path: Path) -> None:
    run_ranks(save, 1, tmp_path, "row_sparse", 1)
    assert "num_items is 101, but 102 in this run" in run_ranks(load_into_another_table, 1, tmp_path)[0]
    checkpoint, _ = latest_checkpoint(tmp_path)
    assert checkpoint is not None
    with pytest.raises(CheckpointError, match=r"weight/0\.\w+ is .* \(7.*expected .* \(8"):
        load_encoder_weights(checkpoint, nn.Sequential(nn.Linear(WIDTH, 8), nn.Linear(8, WIDTH)))


ENCODER_EDITS = {
    "moment missing": (lambda found: found.pop("exp_avg/0.bias"), "has no tensor exp_avg/0.bias"),
    "weight missing": (lambda found: found.pop("weight/0.bias"), "has no tensor weight/0.bias"),
    "one more": (
        lambda found: found.update({"weight/2.bias": torch.ones(1)}),
        "unknown tensor weight/2.bias",
    ),
    "transposed": (
        lambda found: found.update({"weight/0.weight": found["weight/0.weight"].T.contiguous()}),
        r"weight/0.weight is torch.float32 \(6, 7\), expected torch.float32 \(7, 6\)",
    ),
    "half": (
        lambda found: found.update({"weight/0.bias": found["weight/0.bias"].half()}),
        "is torch.float16",
    ),
    "moment of one": (
        lambda found: found.update({"exp_avg_sq/0.bias": torch.ones(1)}),
        r"float32 \(1,\), exp",
    ),
}
"""What is done to the tensors of encoder.safetensors, and the problem that loading names."""


def load_each_edited(world: World, root: Path, stage: int) -> None:
    _, table, engine = build(world, "row_sparse", stage)
    checkpoint, _ = latest_checkpoint(root)
    assert checkpoint is not None
    file = checkpoint.path / "encoder.safetensors"
    whole = read_tensors(file)
    for edit, problem in ENCODER_EDITS.values():
        edit(edited := dict(whole))
        write_tensors(file, edited)
        with pytest.raises(CheckpointError, match=rf"encoder\.safetensors: .*{problem}"):
            load_checkpoint(checkpoint, engine, table)
    write_tensors(file, whole)
    load_checkpoint(checkpoint, engine, table)


@pytest.mark.parametrize("stage", [1, 3])
def test_an_encoder_with_other_tensors_is_rejected(tmp_path: Path, stage: int) -> None:
    run_ranks(save, 1, tmp_path, "row_sparse", 1)
    run_ranks(load_each_edited, 1, tmp_path, stage)


def test_a_checkpoint_contains_no_pickle(tmp_path: Path) -> None:
    run_ranks(save, 2, tmp_path, "row_sparse", 1)
    names = sorted(path.suffix for path in (tmp_path / "step-000000002").iterdir())
    assert names == [".json", ".safetensors", ".safetensors", ".safetensors"]


@pytest.mark.parametrize("shape", [(101, 6), (103, 6), (612,), ()])
def test_a_table_file_with_other_rows_is_rejected(tmp_path: Path, shape: tuple[int, ...]) -> None:
    write_tensors(tmp_path / "table", {"weight": torch.zeros(shape)})
    with pytest.raises(CheckpointError, match=r"table: weight has the shape .*, not 102 rows"):
        open_table_file(tmp_path / "table", 102).__enter__()


def write_checkpoint(path: Path, step: int, **owner: Any) -> Path:
    """Write a checkpoint without files."""
    state = {"schema_version": SCHEMA_VERSION, "step": step, "files": {}, **owner}
    state |= {"num_items": NUM_ITEMS, "width": WIDTH, "table_update": "row_sparse", "table_steps": step}
    path.mkdir(parents=True)
    (path / "state.json").write_text(json.dumps(sealed(state)))
    return path


def test_pruning_keeps_the_newest_and_the_named_checkpoints(tmp_path: Path) -> None:
    for step in (1, 2, 3, 4):
        write_checkpoint(tmp_path / checkpoint_name(step), step)
    prune_checkpoints(tmp_path, {checkpoint_name(1)}, last=2, owner={})
    assert sorted(path.name for path in tmp_path.iterdir()) == [checkpoint_name(step) for step in (1, 3, 4)]


def test_pruning_deletes_damaged_checkpoints_and_does_not_count_them(tmp_path: Path) -> None:
    for step in (1, 2, 3, 4):
        write_checkpoint(tmp_path / checkpoint_name(step), step)
    damaged = [tmp_path / checkpoint_name(step) for step in (2, 4)]
    prune_checkpoints(tmp_path, set(), last=1, damaged=damaged, owner={})
    assert [path.name for path in tmp_path.iterdir()] == [checkpoint_name(3)]


def not_ours(root: Path) -> list[Path]:
    """Write folders and a file that look like checkpoints of run "a" but are not."""
    (root / "step-000000091").mkdir(parents=True)
    (root / "step-000000092").write_text("")
    damaged = write_checkpoint(root / "step-000000093", 93, run_id="a")
    (damaged / "state.json").write_text("[" * 200_000)
    copies = ["step-keep", "step-000000060.bak", "step-0000000060", "step-60", "step-000000094"]
    return [
        *(root / "step-000000091", root / "step-000000092", damaged),
        *(write_checkpoint(root / name, 2, run_id="a") for name in copies),
        write_checkpoint(root / "step-000000095", 95, run_id="b"),
        write_checkpoint(root / "step-000000096", 96),
    ]


def test_only_the_checkpoints_that_the_run_wrote_are_loaded_and_pruned(tmp_path: Path) -> None:
    others, owner = not_ours(tmp_path), {"run_id": "a"}
    with pytest.raises(CheckpointError, match=r"no checkpoint in .* its run_id is 'b', not 'a'"):
        latest_checkpoint(tmp_path, owner=owner)
    for step in (1, 2, 3):
        write_checkpoint(tmp_path / checkpoint_name(step), step, **owner)
    checkpoint, problems = latest_checkpoint(tmp_path, owner=owner)
    assert checkpoint is not None
    assert checkpoint.step == 3
    assert {path.name for path in problems} == {checkpoint_name(step) for step in range(91, 97)}
    prune_checkpoints(tmp_path, set(), 1, problems, owner=owner)
    assert set(tmp_path.iterdir()) == {*others, tmp_path / checkpoint_name(3)}


def save_over_others(world: World, root: Path) -> None:
    _, table, engine = build(world, "row_sparse", 1)
    (root / ".writing-notes").mkdir()
    writer = CheckpointWriter(root, world, background="never", owner={"run_id": "a"})
    for step in (91, 92, 95, 95):
        writer.save(engine, table, step=step, extra={})


def test_a_save_moves_away_what_the_run_did_not_write(tmp_path: Path) -> None:
    others = not_ours(tmp_path)
    run_ranks(save_over_others, 1, tmp_path)
    moved = {tmp_path / f"step-0000000{step}.moved-1" for step in (91, 92, 95)}
    assert set(tmp_path.iterdir()) == {*others, *moved, tmp_path / ".writing-notes"}
    checkpoint, _ = latest_checkpoint(tmp_path, owner={"run_id": "a"})
    assert checkpoint is not None
    assert checkpoint.step == 95
    assert open_checkpoint(tmp_path / "step-000000095.moved-1").state["run_id"] == "b"


def test_files_that_state_json_does_not_list_are_not_read(tmp_path: Path) -> None:
    saved = run_ranks(save, 1, tmp_path, "row_sparse", 1)
    for name in ("table-junk.safetensors", "table-000000000-000000102.safetensors.bak"):
        (tmp_path / "step-000000002" / name).write_text("junk")
    (tmp_path / "step-000000002/table-000000001-000000002.safetensors").write_text("junk")
    loaded = run_ranks(load, 1, tmp_path, "row_sparse", 1)
    assert all(torch.equal(loaded[0][name], value) for name, value in saved[0].items())


def save_while_training(world: World, root: Path, background: Any) -> None:
    _, table, engine = build(world, "row_sparse", 1)
    writer = CheckpointWriter(root, world, background=background)
    for step in range(1, 7):
        one_step(table, engine)
        if step % 2 == 0:
            writer.save(engine, table, step=step, extra={})
    writer.wait()
    torch.distributed.barrier()


def test_a_background_save_writes_the_state_at_its_start(tmp_path: Path) -> None:
    contents = []
    for background in ("always", "never"):
        root = tmp_path / background
        root.mkdir()
        run_ranks(save_while_training, 2, root, background)
        contents.append({str(path.relative_to(root)): path.read_bytes() for path in root.rglob("step-*/*")})
    assert len(contents[0]) == 3 * 4
    assert contents[0] == contents[1]


def fail_in_background(world: World, root: Path, replaced: bool) -> str:
    _, table, engine = build(world, "row_sparse", 1)
    writer = CheckpointWriter(root, world, background="always")
    writer.save(engine, table, step=1, extra={})
    writer.wait()
    (root / "step-000000001").rename(root.parent / "step-000000001")
    root.rmdir()
    if replaced:
        root.mkdir()
    writer.save(engine, table, step=2, extra={})
    with pytest.raises(CheckpointError) as caught:
        writer.wait()
    writer.check()  # the error is raised only once
    return str(caught.value)


@pytest.mark.parametrize("replaced", [False, True])
def test_a_failed_background_save_raises_in_wait(tmp_path: Path, replaced: bool) -> None:
    (tmp_path / "checkpoints").mkdir()
    (message,) = run_ranks(fail_in_background, 1, tmp_path / "checkpoints", replaced)
    assert "checkpoints: the folder was removed or replaced during the run" in message


def test_a_changed_state_json_is_detected(tmp_path: Path) -> None:
    run_ranks(save, 1, tmp_path, "row_sparse", 1)
    file = tmp_path / "step-000000002" / "state.json"
    state = json.loads(file.read_text())
    file.write_text(json.dumps({**state, "table_steps": 3}))
    with pytest.raises(CheckpointError, match=r"state\.json: is damaged"):
        open_checkpoint(file.parent)
