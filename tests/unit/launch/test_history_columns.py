"""A history file is read as the source of the dataset: its rows give the same times and features."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import polars as pl
import pytest
import torch
from support.datasets import prepared
from support.sources import open_source

from longplay.data_shards.storage.dataset import Dataset
from longplay.data_shards.stream.columns import EventColumns
from longplay.launch.evaluation.histories import read_history, user_history
from longplay.launch.settings.errors import ConfigError

TIMES = {
    "date": ["2020-01-01", "2020-01-02T10:00:00", "2020-01-02T10:00:00Z", "2020-03-01"],
    "decimal": ["1000.25", "1001.5", "1001.5", "1003.0"],
    "integer": ["1000", "1001", "1001", "1003"],
    "scaled": ["1000", "1001", "1001", "1003"],
}
OPTIONS = {
    "date": (),
    "decimal": (),
    "integer": ("--time-unit", "s"),
    "scaled": ("--time-unit", "s", "--time-scale", "1000"),
}


def rows(kind: str) -> pl.DataFrame:
    return pl.DataFrame(
        {
            "user": [1, 1, 1, 1],
            "item": ["a", "b", "c", "d"],
            "when": TIMES[kind],
            "Kind of": ["x", None, "y", "x"],
            "size": [7, 8, None, 7],
            "price": [0.1, None, 2.5, 1e-3],
        }
    )


def dataset_of(folder: Path, kind: str) -> Dataset:
    rows(kind).write_csv(folder / "source.csv")
    words = ("--user", "user", "--item", "item", "--time", "when", *OPTIONS[kind])
    features = ("--features", "kind=Kind of:categorical,size:categorical,price:float")
    return prepared(open_source("csv", folder / "source.csv", *words, *features), folder / "set")


def all_columns(dataset: Dataset) -> EventColumns:
    return EventColumns(features=dataset.manifest.features, times=True)


def write_jsonl(table: pl.DataFrame, path: Path) -> None:
    path.write_text("".join(f"{json.dumps(row)}\n" for row in table.to_dicts()))


WRITERS: dict[str, Callable[[pl.DataFrame, Path], object]] = {
    "a.csv": lambda table, path: table.write_csv(path),
    "b.tsv": lambda table, path: table.write_csv(path, separator="\t"),
    "c.jsonl": write_jsonl,
    "d.json": lambda table, path: path.write_text(json.dumps(table.to_dicts())),
    "e.parquet": lambda table, path: table.write_parquet(path),
}


@pytest.mark.parametrize("kind", TIMES)
def test_a_file_gives_the_times_and_features_of_the_source(tmp_path: Path, kind: str) -> None:
    dataset = dataset_of(tmp_path, kind)
    expected = user_history(dataset, 0, all_columns(dataset))
    assert expected.times is not None
    for file, write in WRITERS.items():
        write(rows(kind), tmp_path / file)
        history = read_history(dataset, tmp_path / file, all_columns(dataset))
        assert history.item_ids.tolist() == expected.item_ids.tolist(), file
        assert history.times is not None
        assert history.times.tolist() == expected.times.tolist(), file
        for name, values in expected.features.items():
            assert history.features[name].dtype == values.dtype
            assert torch.equal(history.features[name].nan_to_num(-1), values.nan_to_num(-1)), (file, name)


def test_an_unknown_item_takes_its_time_and_features_with_it(tmp_path: Path) -> None:
    dataset = dataset_of(tmp_path, "scaled")
    rows("scaled").with_columns(item=pl.Series(["a", "new", "c", "d"])).write_csv(tmp_path / "a.csv")
    history = read_history(dataset, tmp_path / "a.csv", all_columns(dataset))
    assert len(history) == 3
    assert history.times is not None
    assert history.times.tolist() == [1_000_000, 1_001_000, 1_003_000]
    assert history.features["kind"].tolist() == [1, 2, 1]


def test_other_names_absent_columns_and_unseen_values(tmp_path: Path) -> None:
    dataset = dataset_of(tmp_path, "scaled")
    (tmp_path / "a.csv").write_text("item_id,timestamp,kind,color\na,1000,z,red\nb,1001,y,red\n")
    history = read_history(dataset, tmp_path / "a.csv", all_columns(dataset))
    assert history.times is not None
    assert history.times.tolist() == [1_000_000, 1_001_000]
    assert {name: values.tolist() for name, values in history.features.items()} == {"kind": [0, 2]}
    (tmp_path / "ids.txt").write_text("a b")
    history = read_history(dataset, tmp_path / "ids.txt", all_columns(dataset))
    assert history.times is None
    assert not history.features


@pytest.mark.parametrize(
    ("kind", "content", "message"),
    [
        ("integer", "item,when\na,1\nb,soon\n", r"a\.csv, line 3: when is 'soon', not a time"),
        ("integer", "item,when\na,1\nb,\n", r"a\.csv, line 3: when is '', not a time"),
        ("integer", "item,when\na,2\nb,1\n", r"a\.csv: the times in when decrease; give events oldest first"),
        (
            "integer",
            "item,when\na,2020-01-01\n",
            r"the times in when are not written as in .* in s; convert",
        ),
        ("date", "item,when\na,1577836800000000\n", r"when is '1577836800000000', not a time"),
        ("integer", "item,size\na,7.5\n", r"a\.csv, line 2: size is '7\.5', not an integer"),
        ("integer", "item,price\na,cheap\n", r"a\.csv, line 2: price is 'cheap', not a finite number"),
        ("integer", "item,item\na,b\n", r"a\.csv: column 'item' occurs twice; rename one"),
        ("integer", "item,when,when\na,1,2\n", r"a\.csv: column 'when' occurs twice; rename one"),
    ],
)
def test_an_unusable_value_is_refused_with_its_place(
    tmp_path: Path, kind: str, content: str, message: str
) -> None:
    dataset = dataset_of(tmp_path, kind)
    (tmp_path / "a.csv").write_text(content)
    with pytest.raises(ConfigError, match=message):
        read_history(dataset, tmp_path / "a.csv", all_columns(dataset))
