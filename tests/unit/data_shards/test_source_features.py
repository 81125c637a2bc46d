"""Features of events and columns of items, from the files to the dataset."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import polars as pl
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from support.datasets import prepared
from support.sources import HEADER, STRICT, open_source, parquet, text

from longplay.data_shards.errors import DataError
from longplay.data_shards.preparation.options import PrepareOptions
from longplay.data_shards.readers.columns import parse_features
from longplay.launch import prepare


def test_features_travel_with_their_events(tmp_path: Path) -> None:
    path = text(
        tmp_path / "a.csv",
        "user_id,item_id,timestamp,hour,Price (EUR),genre\n"
        "1,10,2,0,1.5,rock\n1,11,1,7,,\n2,10,1,0,NaN,pop\n2,12,3,7,2.5,rock\n2,13,2,0,NULL,jazz\n3,1,1,5,9,none\n",
    )
    features = "--features=hour:categorical,price=Price (EUR):float,genre:categorical"
    dataset = prepared(open_source("csv", path, features), tmp_path / "set", STRICT)
    by_name = {feature.name: feature for feature in dataset.manifest.features}
    assert (by_name["hour"].num_values, by_name["genre"].num_values) == (2, 3)
    price = by_name["price"]
    assert (price.least, price.most, price.mean, price.std) == (1.5, 2.5, 2.0, 0.5)
    assert pq.read_table(tmp_path / "set/feature-hour.parquet").to_pydict() == {
        "value": [0, 7],
        "count": [3, 2],
    }
    genres = pq.read_table(tmp_path / "set/feature-genre.parquet").to_pydict()
    assert genres == {"value": ["rock", "jazz", "pop"], "count": [2, 1, 1]}
    collected: dict[int, list[tuple[Any, ...]]] = {}
    for index in range(dataset.num_shards):
        shard = dataset.store.shard(index, with_times=False, features=("hour", "price", "genre"))
        for user in range(len(shard.ptr) - 1):
            events = slice(shard.ptr[user], shard.ptr[user + 1])
            original = dataset.user_original_ids[int(dataset.shard_ptr[index]) + user]
            columns = [shard.features[name][events].tolist() for name in ("hour", "genre", "price")]
            collected[original] = [tuple(map(str, event)) for event in zip(*columns, strict=True)]
    assert collected == {
        1: [("2", "0", "nan"), ("1", "1", "1.5")],
        2: [("1", "3", "nan"), ("1", "2", "nan"), ("2", "1", "2.5")],
    }


def test_item_columns_are_joined(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = text(tmp_path / "a.csv", HEADER + "1,B0,1\n1,B1,2\n2,B1,3\n2,B2,4\n")
    titles = text(
        tmp_path / "titles.csv", 'asin,title,year\nB1,Heat,1995\nB0,"Toy, the",1996\nB9,Alien,1979\n'
    )
    argv = ["csv", str(path), "--items", str(titles), "--items-id", "asin", "--out", str(tmp_path / "set")]
    assert prepare.main(argv) == 0
    assert "1 of 3 items are not in --items" in capsys.readouterr().out
    table = pq.read_table(tmp_path / "set/items.parquet").to_pydict()
    assert table["original_id"] == ["B1", "B0", "B2"]
    assert (table["title"], table["year"]) == (["Heat", "Toy, the", None], [1995, 1996, None])
    manifest = json.loads((tmp_path / "set/manifest.json").read_text())
    assert manifest["source"]["options"]["items"] == str(titles)


@pytest.mark.parametrize("kind", [pa.float64(), pa.float32(), pa.decimal128(4, 1)])
def test_a_categorical_feature_with_a_fraction_is_kept(tmp_path: Path, kind: pa.DataType) -> None:
    path = parquet(
        tmp_path / "a.parquet",
        user_id=[1, 1, 1, 1],
        item_id=[1, 2, 3, 4],
        timestamp=[1, 2, 3, 4],
        rating=pa.array([4.5, 4.5, 4.0, None]).cast(kind),
    )
    prepared(open_source("parquet", path, "--features", "rating:categorical"), tmp_path / "set", STRICT)
    table = pl.read_parquet(tmp_path / "set" / "feature-rating.parquet")
    assert table.rows() == [("4.5", 2), ("4.0", 1)]


def test_a_late_value_that_is_no_integer_is_counted(tmp_path: Path) -> None:
    rows = "".join(f"1,{at},{at},{at % 5}\n" for at in range(20_000))
    path = text(tmp_path / "a.csv", f"user_id,item_id,timestamp,kind\n{rows}1,5,5,x\n1,6,6,\n")
    source = open_source("csv", path, "--features", "kind:categorical")
    dataset = prepared(source, tmp_path / "set", PrepareOptions())
    assert dataset.manifest.rows_dropped == {"not_an_integer:kind": 1}


def test_a_feature_cannot_take_the_name_of_a_column_of_the_dataset() -> None:
    for name in ("user", "item", "time"):
        with pytest.raises(DataError, match=f"'{name}'.* give it another name: {name}_1=x:float"):
            parse_features(f"{name}=x:float")
