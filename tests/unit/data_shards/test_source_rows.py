"""Rows of text, JSON and Parquet: headers, quotes, separators, lists, unusable lines."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from support.datasets import prepared, sequences
from support.sources import HEADER, STRICT, found, open_source, parquet, refusal, text

from longplay.data_shards.errors import DataError
from longplay.data_shards.preparation.options import PrepareOptions
from longplay.data_shards.preparation.pipeline import prepare_dataset
from longplay.data_shards.readers import parquet as parquet_module
from longplay.data_shards.readers import synthetic


@pytest.mark.parametrize("format", ["csv", "parquet"])
def test_a_column_that_occurs_twice_is_refused(tmp_path: Path, format: str) -> None:
    path = text(tmp_path / "a.csv", "user_id,item_id,timestamp,timestamp\n1,10,5,100\n1,11,4,101\n")
    if format == "parquet":
        columns = [pa.array(values) for values in ([1, 1], [10, 11], [1, 2], [2, 1])]
        table = pa.Table.from_arrays(columns, names=["user_id", "item_id", "timestamp", "timestamp"])
        pq.write_table(table, path := tmp_path / "a.parquet")
    assert "column 'timestamp' occurs 2 times" in refusal(tmp_path, format, path)


def test_columns_that_are_not_read_may_have_any_name_and_type(tmp_path: Path) -> None:
    columns = [
        pa.array([1, 1]),
        pa.array([4, 5]),
        pa.array([7, 8]),
        pa.array([1, 2], pa.float16()),
        pa.array([[1], []]),
    ]
    names = ["user_id", "item_id", "timestamp", "c0", "c0"]
    pq.write_table(
        pa.Table.from_arrays([*columns[:3], columns[4], columns[4]], names=names), tmp_path / "a.parquet"
    )
    assert found(tmp_path, "parquet", tmp_path / "a.parquet") == {1: [(4, 7), (5, 8)]}


def test_a_quoted_header_is_split_like_the_rows(tmp_path: Path) -> None:
    path = text(
        tmp_path / "a.csv", 'user_id,item_id,"title, year",timestamp\n1,10,"Toy, 1995",100\n1,12,Alien,102\n'
    )
    assert found(tmp_path, "csv", path) == {1: [(10, 100), (12, 102)]}


@pytest.mark.parametrize("options", [[], ["--quote=none"]])
def test_a_bare_quote_in_a_title_is_text(tmp_path: Path, options: list[str]) -> None:
    rows = "".join(f'1\t{item}\tFoo 7" mix\t{item}\n' for item in range(5))
    path = text(tmp_path / "a.tsv", f"user_id\titem_id\ttitle\ttimestamp\n{rows}")
    assert found(tmp_path, "csv", path, *options) == {1: [(item, item) for item in range(5)]}


def test_an_open_quote_loses_one_line_only(tmp_path: Path) -> None:
    rows = [f"1,{item},{item}" for item in range(9)]
    rows[4] = '1,"4,4'
    path = text(tmp_path / "a.csv", HEADER + "\n".join(rows))
    source = open_source("csv", path, "--quote=double", "--item-type=integer")
    dataset = prepared(source, tmp_path / "set", PrepareOptions(max_bad_fraction=1))
    assert dataset.manifest.rows_dropped == {"bad_quoting": 1}
    assert len(sequences(dataset)[1]) == 8


def test_a_file_without_a_header_is_read_by_column_number(tmp_path: Path) -> None:
    path = text(tmp_path / "u.data", "10 1 5 30\n11 1 4 20\n")
    numbers = ["--header=none", "--sep=space", "--user=2", "--item=1", "--time=4"]
    assert found(tmp_path, "csv", path, *numbers) == {1: [(11, 20), (10, 30)]}
    assert "no column '2'" in refusal(tmp_path / "other", "csv", path, *numbers[1:])


def test_megabytes_of_blank_lines_are_counted_quickly(tmp_path: Path) -> None:
    path = tmp_path / "a.csv"
    path.write_bytes(HEADER.encode() + b"1,2,3\n" + b"\n" * 2_000_000 + b"\r\n" * 1000 + b"  \n1,x,4\n1,5,6")
    source = open_source("csv", path, "--item-type=integer")
    with pytest.raises(DataError, match=r"line 2001004: item_id is not an integer \('x'\)"):
        prepare_dataset(source, tmp_path / "set", STRICT)
    dataset = prepared(source, tmp_path / "set")
    assert sequences(dataset) == {1: [(2, 3), (5, 6)]}
    assert dataset.manifest.rows_dropped == {"blank_line": 2_001_001, "not_an_integer:item_id": 1}


def test_sequences_are_read_from_lists(tmp_path: Path) -> None:
    path = parquet(
        tmp_path / "a.parquet",
        user_id=["x", "y", "z"],
        item_id=[[1, 2, 3], [2, 3], []],
        timestamp=[[3, 1, 2], [5, 5], []],
    )
    assert found(tmp_path, "sequences", path) == {"x": [(2, 1), (3, 2), (1, 3)], "y": [(2, 5), (3, 5)]}
    by_order = {"x": [(1, 0), (2, 1), (3, 2)], "y": [(2, 3), (3, 4)]}
    assert found(tmp_path / "o", "sequences", path, "--time=none") == by_order
    uneven = parquet(
        tmp_path / "b.parquet", user_id=[1, 2], item_id=[[1, 2], [3, 4]], timestamp=[[1, 2], [3]]
    )
    assert "row 2: lengths differ" in refusal(tmp_path / "u", "sequences", uneven)
    dataset = prepared(open_source("sequences", uneven), tmp_path / "u/set")
    assert dataset.manifest.rows_dropped == {"lengths_differ": 2}
    plain = parquet(tmp_path / "c.parquet", user_id=[1], item_id=[1], timestamp=[1])
    assert "does not hold lists" in refusal(tmp_path / "p", "sequences", plain)


def test_lines_of_histories(tmp_path: Path) -> None:
    path = text(tmp_path / "Beauty.txt", "1 10 11 12\n\n2 11 10\n3\n")
    dataset = prepared(open_source("s3rec", path), tmp_path / "set")
    assert sequences(dataset) == {1: [(10, 0), (11, 1), (12, 2)], 2: [(11, 3), (10, 4)]}
    assert dataset.manifest.rows_dropped == {"blank_line": 1, "too_few_columns": 1}


def test_lines_that_are_not_json_objects_are_counted(tmp_path: Path) -> None:
    good = [
        json.dumps({"user_id": "a", "item_id": 2**63 + n, "timestamp": n, "x": {"y": [1]}}) for n in range(3)
    ]
    path = text(
        tmp_path / "a.jsonl",
        "\n".join([good[0], "not json", "", "[1, 2]", good[1], '{"user_id": "a"}', good[2]]),
    )
    dataset = prepared(open_source("jsonl", path), tmp_path / "set")
    assert sequences(dataset) == {"a": [(str(2**63 + n), n) for n in range(3)]}
    assert dataset.manifest.rows_dropped == {"blank_line": 1, "missing:item_id": 1, "not_json": 2}
    assert "line 2: not json ('not json')" in refusal(tmp_path / "r", "jsonl", path)
    assert "not JSON objects" in refusal(tmp_path / "c", "jsonl", text(tmp_path / "b.jsonl", HEADER))


def test_other_columns_need_not_be_utf8(tmp_path: Path) -> None:
    path = tmp_path / "a.csv"
    path.write_bytes("user_id,item_id,timestamp,title\n1,2,3,caf\xe9\n1,3,4,\n1,3\n".encode("latin-1"))
    dataset = prepared(open_source("csv", path), tmp_path / "set", PrepareOptions(max_bad_fraction=1))
    assert sequences(dataset) == {1: [(2, 3), (3, 4)]}
    assert dataset.manifest.rows_dropped == {"too_few_columns": 1}


@pytest.mark.parametrize("other", ["", "1\t9\n"])
def test_a_line_of_separators_has_missing_fields(tmp_path: Path, other: str) -> None:
    path = text(tmp_path / "a.tsv", "user_id\titem_id\ttimestamp\n1\t2\t3\n\t\t\n1\t3\t4\n" + other)
    dataset = prepared(open_source("csv", path), tmp_path / "set", PrepareOptions(max_bad_fraction=1))
    assert dataset.manifest.rows_dropped["missing:user_id"] == 1


def test_a_file_with_a_header_only_does_not_decide_the_types(tmp_path: Path) -> None:
    empty = text(tmp_path / "a.csv", HEADER)
    path = text(tmp_path / "b.csv", HEADER + "u,a,2020-01-01\nu,b,2020-01-02\n")
    assert list(found(tmp_path, "csv", empty, path)) == ["u"]


def test_any_line_separator_may_be_in_a_json_string(tmp_path: Path) -> None:
    lines = (f'{{"user_id":1,"item_id":{at},"timestamp":{at},"title":"a\u2028b"}}\n' for at in (1, 2))
    assert found(tmp_path, "jsonl", text(tmp_path / "a.jsonl", "".join(lines))) == {1: [(1, 1), (2, 2)]}


def test_lines_that_end_in_cr_are_refused_with_a_way_to_convert_them(tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_bytes((HEADER + "1,2,3\n").replace("\n", "\r").encode())
    assert "tr '\\r' '\\n'" in refusal(tmp_path, "csv", tmp_path / "a.csv")


@pytest.mark.parametrize("format", ["parquet", "sequences"])
@pytest.mark.parametrize("row_group_size", [1, 3, 10, 14, 60])
def test_row_groups_of_any_size_give_the_same_sequences(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, format: str, row_group_size: int
) -> None:
    """Blocks of 10 rows hold several groups, one, or a part of one that is too large to read as a whole."""
    monkeypatch.setattr(parquet_module, "BLOCK_ROWS", 10)
    users = [f"u{number % 7}" for number in range(60)] if format == "parquet" else list(range(60))
    items = list(range(60))
    events: dict[str, list[Any]] = {"item_id": items, "timestamp": [number // 9 for number in items]}
    if format == "sequences":
        events = {name: [[value, value + 1] for value in values] for name, values in events.items()}
    table = pa.table({"user_id": users, **events})
    path = tmp_path / "a.parquet"
    pq.write_table(table, path, row_group_size=row_group_size)
    expected: dict[Any, list[tuple[Any, int]]] = {}
    for row in table.to_pylist():
        pairs = [(row["item_id"], row["timestamp"])]
        if format == "sequences":
            pairs = list(zip(row["item_id"], row["timestamp"], strict=True))
        expected.setdefault(row["user_id"], []).extend(pairs)
    assert found(tmp_path, format, path) == expected


def test_generated_events_do_not_depend_on_their_blocks(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source = synthetic.SyntheticSource(users=100, items=50, events=5000)
    whole = prepared(source, tmp_path / "whole", STRICT)
    monkeypatch.setattr(synthetic, "BLOCK_ROWS", 999)
    assert prepared(source, tmp_path / "set", STRICT).dataset_id == whole.dataset_id
