"""Files as other programs write them: nothing in them is lost or changed silently."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from support.datasets import LENIENT, prepared, sequences
from support.sources import list_of, open_source

from longplay.data_shards.errors import DataError
from longplay.data_shards.preparation.options import PrepareOptions
from longplay.data_shards.preparation.pipeline import prepare_dataset

HEADER = "user_id,item_id,timestamp\n"


def text(path: Path, content: str) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(content)
    return path


def found(
    tmp_path: Path, format: str, *arguments: str | Path
) -> tuple[dict[Any, list[tuple[Any, int]]], dict[str, int]]:
    """Return the sequences that a command prepares, and the dropped rows by reason."""
    dataset = prepared(open_source(format, *arguments), tmp_path / "set", LENIENT)
    return sequences(dataset), dataset.manifest.rows_dropped


def refusal(tmp_path: Path, format: str, *arguments: str | Path) -> str:
    """Return the message of a command that is refused."""
    with pytest.raises(DataError) as refused:
        prepare_dataset(open_source(format, *arguments), tmp_path / "set", PrepareOptions())
    assert "\n" not in str(refused.value)
    return str(refused.value)


def json_events(items: str) -> str:
    """Return lines of JSON with one item each, which is written as it stands."""
    rows = enumerate(items.split())
    return "".join(f'{{"user_id": "u", "item_id": {item}, "timestamp": {time}}}\n' for time, item in rows)


def test_numbers_among_string_ids_of_json_are_kept_as_they_are_written(tmp_path: Path) -> None:
    items = ["x", "1e3", "1.50", "-2E-7", "9007199254740993.0", "7", "123456789012345678901234567890"]
    path = text(tmp_path / "a.jsonl", json_events(f'"{items[0]}" {" ".join(items[1:])}'))
    history = [(item, time) for time, item in enumerate(items)]
    assert found(tmp_path, "jsonl", path) == ({"u": history}, {})


@pytest.mark.parametrize("item", ["NaN", "nan", "-Infinity", "null"])
def test_a_number_that_json_does_not_have_is_a_missing_id(tmp_path: Path, item: str) -> None:
    path = text(tmp_path / "a.jsonl", json_events(f'"x" {item} "NaN"'))
    assert found(tmp_path, "jsonl", path) == ({"u": [("x", 0), ("NaN", 2)]}, {"missing:item_id": 1})


def test_any_key_of_json_is_a_column(tmp_path: Path) -> None:
    keys = ["", 'a"b', "a/b", "a~b", "$.x", "*", "a.b", "'"]
    lines = [json.dumps(dict.fromkeys(keys, place) | {"t": place}) for place in range(2)]
    path = text(tmp_path / "a.jsonl", "\n".join(lines))
    for key in keys[1:]:
        arguments = ("--user", "", "--item", key, "--time", "t", "--where", "true")
        message = refusal(tmp_path, "jsonl", path, *arguments)
        assert "no user has 2 of the 2 usable events" in message, key


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        ('[{"user_id": 1},\n{"user_id": 2}]', "JSON array"),
        ('[\n  {"user_id": 1}\n]', "JSON array"),
        ('{\n  "user_id": 1\n}', "jq -c ."),
        ("{u'user_id': 1}\n", "Python literals"),
        ("user_id,item_id\n", "longplay prepare csv"),
    ],
)
def test_other_json_is_refused_by_its_name(tmp_path: Path, content: str, expected: str) -> None:
    assert expected in refusal(tmp_path, "jsonl", text(tmp_path / "a.json", content))


@pytest.mark.parametrize("format", ["csv", "parquet", "jsonl"])
def test_hive_folders_are_columns_of_every_format(tmp_path: Path, format: str) -> None:
    for place, shop in enumerate(["a%3Ab", "__HIVE_DEFAULT_PARTITION__", "c"]):
        folder = tmp_path / f"lake/shop={shop}/day=2020-01-0{place + 1}"
        frame = pl.DataFrame({"user_id": [7, 7], "item_id": [1, 2]})
        folder.mkdir(parents=True)
        {"csv": frame.write_csv, "parquet": frame.write_parquet, "jsonl": frame.write_ndjson}[format](
            folder / f"part-0.{format}"
        )
        text(folder / "_SUCCESS", "")
        text(folder / f".part-0.{format}.crc", "crc")
    arguments = (tmp_path / "lake", "--time", "day", "--features", "shop:categorical")
    events, dropped = found(tmp_path, format, *arguments)
    days = [1577836800000000 + day * 86400000000 for day in range(3)]
    assert (events, dropped) == ({7: [(item, day) for day in days for item in (1, 2)]}, {})
    values = pl.read_parquet(tmp_path / "set/feature-shop.parquet")
    assert values.rows() == [("a:b", 2), ("c", 2)]


def test_a_time_of_the_default_partition_is_missing(tmp_path: Path) -> None:
    for day in ("2020-01-01", "__HIVE_DEFAULT_PARTITION__"):
        text(tmp_path / f"lake/day={day}/a.csv", "user_id,item_id\n7,1\n7,2\n")
    events, dropped = found(tmp_path, "csv", tmp_path / "lake", "--time", "day")
    assert (events, dropped) == ({7: [(1, 1577836800000000), (2, 1577836800000000)]}, {"missing:day": 2})


@pytest.mark.parametrize("first", [True, False])
def test_a_column_without_values_in_one_file_has_the_type_of_the_others(tmp_path: Path, first: bool) -> None:
    empty, full = ("a", "b") if first else ("b", "a")
    none = pa.nulls(1)
    tables = {
        empty: {"user_id": none, "item_id": ["x"], "timestamp": none, "r": none, "p": none},
        full: {
            "user_id": ["u"] * 2,
            "item_id": ["x", "y"],
            "timestamp": [1.5, 2.5],
            "r": ["g"] * 2,
            "p": [1, 2],
        },
    }
    for name, columns in tables.items():
        pq.write_table(pa.table(columns), tmp_path / f"{name}.parquet")
    paths = (tmp_path / "a.parquet", tmp_path / "b.parquet")
    events, dropped = found(tmp_path, "parquet", *paths, "--features", "r:categorical,p:float")
    assert events == {"u": [("x", 1500000), ("y", 2500000)]}
    assert dropped == {"missing:user_id": 1}


@pytest.mark.parametrize("mark", ["NaN", "NA", "NULL", "None", "\\N", "<NA>"])
def test_a_mark_of_a_missing_value_does_not_make_integers_strings(tmp_path: Path, mark: str) -> None:
    rows = f"1,5,10,3\n1,4,9,3\n{mark},6,11,3\n1,{mark},12,3\n1,8,{mark},3\n1,9,13,{mark}\n"
    path = text(tmp_path / "a.csv", "user_id,item_id,timestamp,rating\n" + rows)
    arguments = (path, "--features", "rating:categorical,score=rating:float")
    events, dropped = found(tmp_path, "csv", *arguments)
    assert events == {1: [(4, 9), (5, 10), (9, 13)]}
    assert dropped == {"missing:user_id": 1, "missing:item_id": 1, "missing:timestamp": 1}
    assert found(tmp_path / "w", "csv", path, "--where", "rating > 2")[1]["not_selected"] == 1


@pytest.mark.parametrize("value", ["1,5", "abc", "inf", "1e39"])
def test_a_float_feature_that_is_not_a_number_is_an_unusable_row(tmp_path: Path, value: str) -> None:
    rows = f"1;5;10;1.5\n1;6;11;{value}\n1;7;12;\n"
    path = text(tmp_path / "a.csv", "user_id;item_id;timestamp;price\n" + rows)
    events, dropped = found(tmp_path, "csv", path, "--features", "price:float")
    assert (events, dropped) == ({1: [(5, 10), (7, 12)]}, {"not_a_number:price": 1})


@pytest.mark.parametrize("format", ["csv", "parquet"])
def test_nan_meets_no_condition(tmp_path: Path, format: str) -> None:
    frame = pl.DataFrame(
        {"user_id": [1] * 3, "item_id": [5, 6, 7], "timestamp": [1, 2, 3], "r": [4.5, float("nan"), 5.0]}
    )
    path = tmp_path / f"a.{format}"
    (frame.write_csv if format == "csv" else frame.write_parquet)(path)
    events, dropped = found(tmp_path, format, path, "--where", "r >= 4")
    assert (events, dropped) == ({1: [(5, 1), (7, 3)]}, {"not_selected": 1})


@pytest.mark.parametrize("where", ["true", None])
def test_times_of_another_unit_in_one_file_are_unusable_rows(tmp_path: Path, where: str | None) -> None:
    rows = "1,5,1577836800\n1,6,1577836801000\n1,7,-62135596801\n1,8,253402300799\n1,9,-62135596800\n"
    path = text(tmp_path / "a.csv", HEADER + rows)
    arguments = ("--time-unit", "s", *(("--where", where) if where else ()))
    events, dropped = found(tmp_path, "csv", path, *arguments)
    assert events == {1: [(9, -62135596800), (5, 1577836800), (8, 253402300799)]}
    assert dropped == {"out_of_range:timestamp": 2}


def test_times_with_leading_zeros_are_integers(tmp_path: Path) -> None:
    path = text(tmp_path / "a.csv", HEADER + "1,5,0829\n1,6,1111\n")
    assert found(tmp_path, "csv", path) == ({1: [(5, 829), (6, 1111)]}, {})


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        ("user_id,item_id,timestamp\n1,2,3\n".encode("utf-16-le"), "UTF-16"),
        ("user_id,item_id,timestamp\n1,2,3\n".encode("utf-16-be"), "UTF-16"),
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 1\n", "git lfs pull"),
        (b"<!DOCTYPE html>\n<html></html>\n", "HTML page"),
        (b'user_id,item_id,timestamp\n1,"a\nb",3\n1,c,4\n', "a quoted field may not hold a line break"),
        (b"user_id,item_id,timestamp\n1,2,31.1.2020\n1,3,31.2.2020\n", "dates are ISO 8601"),
    ],
)
def test_the_fault_of_a_file_is_named(tmp_path: Path, content: bytes, expected: str) -> None:
    path = tmp_path / "a.csv"
    path.write_bytes(content)
    assert expected in refusal(tmp_path, "csv", path)


@pytest.mark.parametrize("format", ["csv", "s3rec"])
def test_a_mark_at_the_start_of_a_block_is_part_of_an_id(tmp_path: Path, format: str) -> None:
    lines = ["\ufeffu,a,1", "\ufeffu,b,2"] if format == "csv" else ["\ufeff\ufeffu a b", "\ufeffu c d"]
    source = open_source(format, text(tmp_path / "a.txt", HEADER * (format == "csv") + "\n".join(lines)))
    users = [user for block in source.blocks(4) for user in list_of(block.parse().user)]
    assert users == ["\ufeffu"] * (2 if format == "csv" else 4)


def test_a_list_without_items_whose_times_are_not_empty_is_counted(tmp_path: Path) -> None:
    lists = {"item_id": [["x", "y"], None, []], "timestamp": [[1, 2], [5], []]}
    pq.write_table(pa.table({"user_id": ["a", "b", "c"], **lists}), tmp_path / "a.parquet")
    events, dropped = found(tmp_path, "sequences", tmp_path / "a.parquet")
    assert (events, dropped) == ({"a": [("x", 1), ("y", 2)]}, {"lengths_differ": 1})


@pytest.mark.parametrize("where", ["true", None])
def test_columns_of_other_types_are_ignored(tmp_path: Path, where: str | None) -> None:
    others = {"half": pa.array([1, 2], pa.float16()), "wide": pa.nulls(2, pa.decimal256(50, 1))}
    table = pa.table({"user_id": ["u"] * 2, "item_id": ["x", "y"], "timestamp": [1, 2], **others})
    pq.write_table(table, tmp_path / "a.parquet")
    arguments = ("--where", where) if where else ()
    assert found(tmp_path, "parquet", tmp_path / "a.parquet", *arguments)[0] == {"u": [("x", 1), ("y", 2)]}


@pytest.mark.parametrize("where", ["rating > 4", '"rating:float" > 4'])
def test_a_condition_sees_the_columns_of_recbole_without_their_types(tmp_path: Path, where: str) -> None:
    header = "user_id:token\titem_id:token\trating:float\ttimestamp:float\n"
    path = text(tmp_path / "a.inter", header + "1\t5\t3\t10\n1\t6\t4.5\t11\n1\t7\t5\t12\n")
    assert found(tmp_path, "csv", path, "--where", where)[0] == {1: [(6, 11), (7, 12)]}


@pytest.mark.parametrize(
    ("first", "later", "where", "reason"),
    [
        ("5", "good", "r <> 3", "not_an_integer:r"),
        ("4.5", "1,5", "r > 1", "not_a_number:r"),
        ("true", "maybe", "r", "not_a_boolean:r"),
        ("2020-01-31", "31.1.2020", "r > '2019-01-01'", "not_a_date:r"),
    ],
)
def test_a_later_value_of_another_type_is_not_left_out_by_a_condition(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, first: str, later: str, where: str, reason: str
) -> None:
    monkeypatch.setattr("longplay.data_shards.readers.text.HEAD_ROWS", 2)
    rows = f"1;5;10;{first};x\n1;6;11;{first};y\n1;7;12;{later};7\n1;8;13;;8\n"
    path = text(tmp_path / "a.csv", "user_id;item_id;timestamp;r;unused\n" + rows)
    events, dropped = found(tmp_path, "csv", path, "--where", where)
    assert (events, dropped) == ({1: [(5, 10), (6, 11)]}, {reason: 1, "not_selected": 1})


def test_parquet_text_that_is_not_utf8_is_refused_only_where_it_is_read(tmp_path: Path) -> None:
    offsets, content = pa.py_buffer(np.array([0, 1, 2], np.int32).tobytes()), pa.py_buffer(b"a\xff")
    table = pa.table({"user_id": [1, 1], "item_id": [5, 6], "timestamp": [1, 2]})
    table = table.append_column("note", pa.StringArray.from_buffers(2, offsets, content))
    pq.write_table(table, tmp_path / "a.parquet")
    arguments = (tmp_path / "a.parquet", "--where", "timestamp > 0")
    assert found(tmp_path, "parquet", *arguments)[0] == {1: [(5, 1), (6, 2)]}
    message = refusal(tmp_path / "r", "parquet", tmp_path / "a.parquet", "--item", "note")
    assert "column 'note' holds text that is not UTF-8" in message


@pytest.mark.parametrize("far", [-(2**31), 2**31 - 1])
def test_a_date_beyond_all_calendars_is_an_unusable_row(tmp_path: Path, far: int) -> None:
    days = pa.array([0, 1, far], pa.date32())
    pq.write_table(
        pa.table({"user_id": [1] * 3, "item_id": [5, 6, 7], "timestamp": days}), tmp_path / "a.parquet"
    )
    events, dropped = found(tmp_path, "parquet", tmp_path / "a.parquet")
    assert (events, dropped) == ({1: [(5, 0), (6, 86400000000)]}, {"not_a_date:timestamp": 1})


def test_deeply_nested_json_is_read(tmp_path: Path) -> None:
    deep = f'{{"user_id": 1, "item_id": 5, "timestamp": 1, "x": {"[" * 5000 + "]" * 5000}}}\n'
    path = text(tmp_path / "a.jsonl", deep + '{"user_id": 1, "item_id": 6, "timestamp": 2}\n')
    assert found(tmp_path, "jsonl", path) == ({1: [(5, 1), (6, 2)]}, {})
