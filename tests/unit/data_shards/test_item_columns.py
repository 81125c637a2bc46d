"""Columns of the items beyond ids and counts: read on request, checked and described."""

import re
from pathlib import Path

import numpy as np
import polars as pl
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from support.data_server import DataServer
from support.datasets import log_normal_lengths, make_dataset
from support.string_ids import add_item_columns, give_string_ids

from longplay.data_shards.errors import DataError
from longplay.data_shards.storage.dataset import Dataset
from longplay.data_shards.storage.inspection import inspect_dataset
from longplay.data_shards.storage.manifest import ITEMS_NAME
from longplay.data_shards.storage.verification import find_problems


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    make_dataset(tmp_path / "set", log_normal_lengths(20), num_shards=2)
    return add_item_columns(tmp_path / "set")


def test_titles_are_those_of_the_items(folder: Path) -> None:
    dataset = Dataset.open(folder)
    table = pl.read_parquet(folder / ITEMS_NAME)
    assert dataset.items.columns.titles(np.array([3, 1, 2, 0, 1])) == [
        table["title"][2],
        table["title"][0],
        None,
        None,
        table["title"][0],
    ]
    assert dataset.items.columns.titles(np.array([], np.int64)) == []
    assert dataset.items.columns.column("vector").equals(table["vector"])
    assert list(dataset.items.columns.types) == ["title", "year", "vector"]
    assert find_problems(folder) == []


def test_ids_and_titles_are_read_from_a_url(folder: Path) -> None:
    give_string_ids(folder)
    server = DataServer(folder)
    try:
        remote, local = Dataset.open(server.url), Dataset.open(folder)
        assert remote.items.original_ids.tolist() == local.items.original_ids.tolist()
        assert remote.user_original_ids.tolist() == local.user_original_ids.tolist()
        every = np.arange(1, local.num_items + 1)
        assert remote.items.columns.titles(every) == local.items.columns.titles(every)
    finally:
        server.close()


def test_titles_may_be_numbers_and_a_dataset_without_titles_has_none(folder: Path) -> None:
    table = pl.read_parquet(folder / ITEMS_NAME)
    table.with_columns(title=pl.col("year")).write_parquet(folder / ITEMS_NAME)
    assert Dataset.open(folder).items.columns.titles(np.array([2])) == [str(table["year"][1])]
    for columns in (["item_id", "original_id", "count"], pl.exclude("title")):
        table.select(columns).write_parquet(folder / ITEMS_NAME)
        assert Dataset.open(folder).items.columns.titles(np.array([1])) is None


def test_inspection_describes_item_columns(folder: Path) -> None:
    dataset = Dataset.open(folder)
    found = inspect_dataset(dataset)
    assert {name: column["type"] for name, column in found.item_columns.items()} == {
        "title": "String",
        "year": "Int64",
        "vector": "List(Float32)",
    }
    assert found.item_columns["title"]["present"] == (dataset.num_items - 1) / dataset.num_items
    assert found.item_columns["vector"]["present"] is None
    first = found.top_items[0]
    assert (first["item_id"], first["count"]) == (dataset.items.original_ids[0], dataset.item_counts[0])
    assert [item["title"] for item in found.top_items][1] is None


def test_damaged_columns_are_found(folder: Path) -> None:
    table = pq.read_table(folder / ITEMS_NAME)
    titles = [(title or "").encode() for title in table["title"].to_pylist()]
    titles[3] = b"\xff"
    damaged = table.set_column(3, "title", pa.array(titles, pa.binary()).view(pa.string()))
    pq.write_table(damaged, folder / ITEMS_NAME)
    (problem,) = find_problems(folder)
    assert re.search(r"items.parquet: cannot be read \(.*UTF.?8", problem)
    with pytest.raises(DataError, match=r"items.parquet: cannot be read \(.*UTF.?8.*; restore the file"):
        Dataset.open(folder).items.columns.titles(np.array([1]))
