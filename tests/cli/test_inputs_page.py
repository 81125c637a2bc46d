"""The commands of the page on features and times run on a small dataset."""

from __future__ import annotations

import re
import shlex
from dataclasses import asdict
from pathlib import Path

import numpy as np
import polars as pl
import pytest
from support.commands import longplay
from support.datasets import REPOSITORY, log_normal_lengths
from support.feature_sets import write_dataset
from support.json_edits import edit_json

from longplay.launch.cli import main

PAGE = REPOSITORY / "docs" / "guides" / "inputs.md"
SMALL = shlex.split(
    "--context_length 20 --encoder.d_model 16 --data.rows_per_step 12 --train.max_steps 2 --train.device cpu"
)


def commands() -> list[list[str]]:
    """Return the commands of the page's code blocks without a language."""
    blocks = PAGE.read_text().replace("\\\n", " ").split("```")[1::2]
    lines = [line for block in blocks if block[0] == "\n" for line in block.splitlines() if line]
    return [shlex.split(line)[1:] for line in lines]


def write_shop(folder: Path) -> None:
    """Write the events and the items that the page prepares."""
    lengths, rng = log_normal_lengths(60, median=8), np.random.default_rng(0)
    events = int(lengths.sum())
    shop = {
        "user": np.repeat(np.arange(60), lengths),
        "item": [f"B{number:03d}" for number in rng.integers(0, 50, events)],
        "time": 1_600_000_000 + np.arange(events) * 1000,
        "device": rng.choice(np.array(["phone", "laptop", None], object), events),
        "price": [None if price < 5 else price for price in rng.normal(10, 3, events)],
    }
    pl.DataFrame(shop).write_csv(folder / "shop.csv")
    pl.DataFrame(shop).drop("user").tail(5).write_csv(folder / "events.csv")
    products = {
        "item": [f"B{number:03d}" for number in range(50)],
        "category": [None if number % 9 == 2 else f"category {number % 5}" for number in range(50)],
        "embedding": rng.normal(size=(50, 4)).tolist(),
    }
    pl.DataFrame(products).write_parquet(folder / "products.parquet")


@pytest.mark.slow
def test_the_commands_of_the_page_run(tmp_path: Path) -> None:
    write_shop(tmp_path)
    here = ("data/", "runs/", "shop.csv", "events.csv", "products.parquet")
    ran = commands()
    assert {words[0] for words in ran} == {"prepare", "inspect", "train", "plan", "evaluate", "recommend"}
    for words in ran:
        placed = [str(tmp_path / word) if word.startswith(here) else word for word in words]
        output = longplay([*placed, *(SMALL if words[0] in ("train", "plan") else [])], tmp_path / "out")
        assert words[0] != "train" or "inputs   " in output
        if words[0] == "inspect":
            assert re.search(r"^  device +categorical, 2 values, most frequent", output, re.MULTILINE)
            assert re.search(r"^  price +float, 5\.\d+ to 1\d", output, re.MULTILINE)


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
    (page,) = dataset.manifest.features
    edit_json(tmp_path / "set" / "manifest.json", features=[{**asdict(page), "num_values": 10**8}])
    words = ["plan", "sasrec", "--data", str(tmp_path / "set"), "--memory", "16GiB"]
    assert main([*words, "--inputs.features", "page"]) == 2
    assert "more than 16.00 GiB" in capsys.readouterr().err
