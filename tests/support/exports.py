"""Train, export and ask for recommendations."""

import json
from pathlib import Path
from typing import Any

import numpy as np

from longplay.data_shards.storage.dataset import Dataset
from support.commands import longplay


def trained(data: Path, folder: Path, *overrides: str, world_size: int = 1) -> Path:
    words = ["train", "small", "--data", str(data), "--run", str(folder / "run"), "--train.max_epochs", "2"]
    longplay([*words, *overrides], folder / "train.log", world_size=world_size)
    return folder / "run"


def recommended(run: Path, history: list[int], folder: Path, *words: str) -> list[dict[str, Any]]:
    """Return what `longplay recommend --json` prints after a history."""
    (folder / "ids.txt").write_text(" ".join(map(str, history)))
    words = ("recommend", str(run), "--history", str(folder / "ids.txt"), "--json", *words)
    return json.loads(longplay(list(words), folder / "recommend.log").splitlines()[-1])


def histories(data: Path, count: int) -> list[list[int]]:
    dataset = Dataset.open(data)
    users = np.argsort(-dataset.lengths)[:: dataset.num_users // count][:count]
    return [dataset.items.originals(dataset.sequence(int(user))[0]).tolist() for user in users]
