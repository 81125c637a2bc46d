"""The commands of the page on features and times run on a small dataset."""

from __future__ import annotations

import shlex
from pathlib import Path

import numpy as np
import polars as pl
import pytest
from support.commands import longplay
from support.datasets import REPOSITORY, log_normal_lengths
from support.feature_sets import write_dataset

from longplay.data_shards.storage.manifest import ITEMS_NAME
from longplay.launch.cli import main

PAGE = REPOSITORY / "docs" / "guides" / "inputs.md"
SMALL = shlex.split(
    "--context_length 20 --encoder.d_model 16 --data.rows_per_step 12 --train.max_steps 2 --train.device cpu"
)


def commands() -> list[list[str]]:
    """Return the commands of the page's code blocks without a language."""
    blocks = PAGE.read_text().split("```")[1::2]
    return [
        shlex.split(line)[1:] for block in blocks if block[0] == "\n" for line in block.split("\n") if line
    ]


def test_the_commands_of_the_page_run(tmp_path: Path) -> None:
    lengths, rng = log_normal_lengths(60, median=8), np.random.default_rng(0)
    events = int(lengths.sum())
    dataset = write_dataset(
        tmp_path / "data" / "shop",
        lengths,
        rng.integers(0, 50, events),
        1_600_000_000 + np.arange(events) * 1000,
        categorical={"device": rng.choice(np.array(["phone", "laptop", None], object), events)},
        floats={"price": rng.normal(10, 3, events)},
        num_shards=12,
    )
    items = tmp_path / "data" / "shop" / ITEMS_NAME
    number = np.arange(dataset.num_items)
    columns = {
        "category": [f"category {n % 5}" for n in number],
        "embedding": rng.normal(size=(len(number), 4)),
    }
    pl.read_parquet(items).with_columns(
        **{name: pl.Series(values) for name, values in columns.items()}
    ).write_parquet(items)
    ran = commands()
    assert {words[0] for words in ran} == {"train", "plan", "evaluate", "recommend"}
    for words in ran:
        placed = [str(tmp_path / word) if word.startswith(("data/", "runs/")) else word for word in words]
        output = longplay([*placed, *(SMALL if words[0] in ("train", "plan") else [])], tmp_path / "out")
        assert words[0] != "train" or "inputs   " in output


def test_a_feature_with_too_many_values_is_refused_by_its_memory(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    lengths = np.full(40, 6)
    dataset = write_dataset(
        tmp_path / "set",
        lengths,
        np.arange(240) % 30,
        np.arange(240),
        categorical={"page": np.arange(240)},
        num_shards=12,
    )
    path = tmp_path / "set" / "manifest.json"
    path.write_text(path.read_text().replace('"num_values": 240', '"num_values": 100000000'))
    assert dataset.manifest.feature("page").num_values == 240
    words = ["plan", "sasrec", "--data", str(tmp_path / "set"), "--memory", "16GiB"]
    assert main([*words, "--inputs.features", "page"]) == 2
    assert "more than 16.00 GiB" in capsys.readouterr().err
