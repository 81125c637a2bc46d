"""Public datasets are read from the files that are downloaded."""

from __future__ import annotations

import gzip
import json
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from support.datasets import prepared, sequences
from support.sources import open_source

from longplay.data_shards.errors import DataError
from longplay.data_shards.preparation.options import PrepareOptions
from longplay.data_shards.storage.dataset import Dataset

STRICT = PrepareOptions(max_bad_fraction=0)


def found(tmp_path: Path, *arguments: str | Path) -> dict[Any, list[tuple[Any, int]]]:
    """Return the sequences that a command prepares."""
    return sequences(prepared(open_source(str(arguments[0]), *arguments[1:]), tmp_path / "set", STRICT))


def test_movielens(tmp_path: Path) -> None:
    rows = "userId,movieId,rating,timestamp\n1,296,5.0,1147880044\n1,306,3.5,1147868817\n"
    (tmp_path / "ratings.csv").write_text(rows)
    assert found(tmp_path, "movielens", tmp_path) == {1: [(306, 1147868817), (296, 1147880044)]}
    assert Dataset.open(tmp_path / "set").manifest.time_unit == "s"
    selected = open_source("movielens", tmp_path / "ratings.csv", "--where=rating > 4")
    with pytest.raises(DataError, match="nothing left"):
        prepared(selected, tmp_path / "none")


@pytest.mark.parametrize(
    ("name", "names"),
    [
        ("Books_5.json.gz", ("reviewerID", "asin", "unixReviewTime")),
        ("Books.jsonl.gz", ("user_id", "parent_asin", "timestamp")),
    ],
)
def test_amazon_reviews(tmp_path: Path, name: str, names: tuple[str, str, str]) -> None:
    reviews = [("A3", "0001", 20), ("A3", "B00", 10)]
    lines = [
        json.dumps({**dict(zip(names, review, strict=True)), "text": 'so\n"good"'}) for review in reviews
    ]
    (tmp_path / name).write_bytes(gzip.compress("\n".join(lines).encode()))
    assert found(tmp_path, "amazon", tmp_path / name) == {"A3": [("B00", 10), ("0001", 20)]}


def test_amazon_csv(tmp_path: Path) -> None:
    path = tmp_path / "Books.csv"
    path.write_text(
        "user_id,parent_asin,rating,timestamp\nAE1,0001,5.0,1586300000000\nAE1,2,5.0,1586300000001\n"
    )
    assert found(tmp_path, "amazon", path) == {"AE1": [("0001", 1586300000000), ("2", 1586300000001)]}


def test_yambda(tmp_path: Path) -> None:
    columns = {"uid": pa.array([7, 7], pa.uint32()), "item_id": pa.array([3, 4], pa.uint32())}
    (tmp_path / "flat").mkdir()
    table = pa.table({**columns, "timestamp": pa.array([10, 5], pa.uint32())})
    pq.write_table(table, tmp_path / "flat/listens.parquet")
    pq.write_table(table, tmp_path / "flat/likes.parquet")
    assert found(tmp_path, "yambda", tmp_path / "flat") == {7: [(4, 5), (3, 10)]}


def test_vklsvd_is_read_in_the_order_of_weeks(tmp_path: Path) -> None:
    for folder, week in (("test", 26), ("train", 0), ("train", 1), ("validation", 25)):
        (tmp_path / folder).mkdir(exist_ok=True)
        columns = {
            "user_id": pa.array([1, 1], pa.uint32()),
            "item_id": pa.array([week, week + 100], pa.uint32()),
        }
        pq.write_table(pa.table(columns), tmp_path / folder / f"week_{week:02}.parquet")
    (tmp_path / "metadata").mkdir()
    pq.write_table(pa.table({"item_id": [1]}), tmp_path / "metadata/items_metadata.parquet")
    items = [week + more for week in (0, 1, 25, 26) for more in (0, 100)]
    assert found(tmp_path, "vklsvd", tmp_path) == {1: [(item, time) for time, item in enumerate(items)]}


LOG = "log_standard_4_08_to_4_21_1k.csv"


@pytest.mark.parametrize(
    ("copy", "refused"), [(f"{LOG}.gz", True), (f"{LOG}.1", False), (f"{LOG}.bak", False)]
)
def test_copies_of_a_kuairand_log_are_not_read(tmp_path: Path, copy: str, refused: bool) -> None:
    content = b"user_id,video_id,time_ms,is_click,tab\n" + b"".join(
        b"0,%d,164%d,1,1\n" % (n, n) for n in range(3)
    )
    (tmp_path / LOG).write_bytes(content)
    (tmp_path / copy).write_bytes(gzip.compress(content) if refused else content)
    if refused:
        with pytest.raises(DataError, match=f"{LOG}.gz: holds the same data as .*{LOG}"):
            found(tmp_path, "kuairand", tmp_path)
    else:
        assert len(found(tmp_path, "kuairand", tmp_path)[0]) == 3
