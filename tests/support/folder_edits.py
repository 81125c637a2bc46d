"""What users do to a run folder between two starts: they rename, copy, edit and delete files."""

from __future__ import annotations

import json
import os
import random
import shutil
from collections.abc import Callable
from pathlib import Path

from longplay.distributed.checkpoints.checkpoint import checkpoint_step


def run_checkpoints(run: Path) -> list[Path]:
    """Return the folders that the run may have written, by step."""
    return sorted(path for path in (run / "checkpoints").glob("step-*") if checkpoint_step(path) is not None)


def copy_to_a_name(run: Path, draws: random.Random) -> list[Path]:
    copy = run / "checkpoints" / f"step-keep-{draws.randrange(10**6)}"
    shutil.copytree(run_checkpoints(run)[-1], copy)
    return [copy]


def copy_to_a_later_step(run: Path, draws: random.Random) -> list[Path]:
    copy = run / "checkpoints" / f"step-{999_000_000 + draws.randrange(10**6)}"
    shutil.copytree(run_checkpoints(run)[0], copy)
    return [copy]


def rename_the_oldest(run: Path, draws: random.Random) -> list[Path]:
    oldest, *others = run_checkpoints(run)
    if not others:
        return []
    kept = oldest.with_name(f"mine-{draws.randrange(10**6)}")
    return [oldest.rename(kept)]


def add_files(run: Path, draws: random.Random) -> list[Path]:
    newest = run_checkpoints(run)[-1]
    added = [newest / "table-junk.safetensors", run / f"notes-{draws.randrange(10**6)}.txt"]
    for path in added:
        path.write_text("junk")
    return added[1:]  # the first one is deleted with its checkpoint


def edit_the_settings(run: Path, draws: random.Random) -> list[Path]:
    file = run / "config.json"
    saved = json.loads(file.read_text())
    saved["config"]["train"]["lr"] *= 2
    file.write_text(json.dumps(saved))
    return []


def edit_the_best(run: Path, draws: random.Random) -> list[Path]:
    (run / "best.json").write_text('{"checkpoint": ["?"')
    return []


def cut_a_line_of_the_metrics(run: Path, draws: random.Random) -> list[Path]:
    with (run / "metrics.jsonl").open("a") as file:
        file.write('{"step": 3, "tag": "train/lo')
    return []


def delete_the_curves(run: Path, draws: random.Random) -> list[Path]:
    shutil.rmtree(run / "tensorboard")
    return []


EDITS: dict[str, Callable[[Path, random.Random], list[Path]]] = {
    "copied": copy_to_a_name,
    "copied to later": copy_to_a_later_step,
    "renamed": rename_the_oldest,
    "files added": add_files,
    "lr edited": edit_the_settings,
    "best edited": edit_the_best,
    "metrics cut": cut_a_line_of_the_metrics,
    "curves gone": delete_the_curves,
}
"""Each returns the user's own files and folders, which must stay."""

DAMAGES = ("bit flipped", "file cut", "file gone", "state cut", "folder gone")


def damage(run: Path, kind: str, draws: random.Random) -> None:
    """Damage the newest checkpoint, unless it is the only one."""
    *others, newest = [path for path in run_checkpoints(run) if checkpoint_step(path) < 999_000_000]  # pyright: ignore[reportOptionalOperand] -- it has a step
    if not others:
        return
    file = draws.choice(sorted(newest.glob("[et]*[0-9r].safetensors")))
    if kind == "bit flipped":
        content = bytearray(file.read_bytes())
        content[draws.randrange(len(content))] ^= 1 << draws.randrange(8)
        file.write_bytes(content)
    elif kind == "file cut":
        os.truncate(file, draws.randrange(file.stat().st_size))
    elif kind == "file gone":
        file.unlink()
    elif kind == "state cut":
        os.truncate(newest / "state.json", 100)
    else:
        newest.rename(newest.with_name(f"lost-{newest.name}"))
