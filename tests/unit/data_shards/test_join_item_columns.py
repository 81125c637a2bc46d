"""The columns of a table are joined to their items exactly, in the order of the items."""

import gzip
import json
from pathlib import Path
from typing import Any

import polars as pl
import pyarrow as pa
import pytest

from longplay.data_shards.errors import DataError
from longplay.data_shards.preparation.item_columns import join_item_columns
from longplay.data_shards.storage.id_column import IdColumn

STRINGS = IdColumn(pl.Series(["B3", "007", "a b", "7", "é", "none"]))
INTEGERS = IdColumn(pl.Series([30, 7, -5, 2**62 + 1]))
MEMORY = 256 << 20


def joined(ids: IdColumn, path: Path, item: str = "item_id") -> tuple[dict[str, list[Any]], int, int]:
    """Return the columns, the number of unknown rows and the number of missing items."""
    scratch = path.parent / "scratch"
    with join_item_columns(ids, path, item=item, memory_bytes=MEMORY, scratch=scratch) as columns:
        table = pa.Table.from_batches(columns.batches(2), columns.schema)
        assert table.num_rows == len(ids)
        counts = columns.num_unknown, columns.num_missing
    assert not any(scratch.glob("*"))
    return table.to_pydict(), *counts


def test_csv(tmp_path: Path) -> None:
    text = '\ufeffasin,title,year,price,zip\r\n007,"Hello, ""w""",1999,1.5,01\r\n7,2001,,2,2\r\n'
    text += 'B3,"two\nlines",-3,,3\r\n"a b", x ,4,1e3,4\r\nX,y,1,1,1\r\n,z,2,2,2\r\n'
    (tmp_path / "items.csv").write_text(text, newline="")
    with gzip.open(tmp_path / "items.csv.gz", "wt", newline="") as file:
        file.write(text)
    expected = {
        "title": ["two\nlines", 'Hello, "w"', " x ", "2001", None, None],
        "year": [-3, 1999, 4, None, None, None],
        "price": [None, 1.5, 1000.0, 2.0, None, None],
        "zip": ["3", "01", "4", "2", None, None],
    }
    for name in ("items.csv", "items.csv.gz"):
        assert joined(STRINGS, tmp_path / name, "asin") == (expected, 2, 2)


def test_other_separators_and_recbole(tmp_path: Path) -> None:
    rows = [["item_id:token", "title:token_seq", "a'b\"c:float"], ["7", '3" disc', "1"], ["30.0", "x", "2"]]
    for name, separator in (("a.item", "\t"), ("b.tsv", "\t"), ("c.csv", ";"), ("d.txt", "|")):
        (tmp_path / name).write_text("".join(separator.join(row) + "\n" for row in rows))
        expected = {"title": ["x", '3" disc', None, None], "a'b\"c": [2, 1, None, None]}
        assert joined(INTEGERS, tmp_path / name) == (expected, 0, 2), name


def test_json_lines(tmp_path: Path) -> None:
    rows = [
        {"id": "007", "title": "2020-01-01", "tags": [["a"], ["b", "c"]], "day": "2020-01-01", "any": 1},
        {"id": 7, "title": 5, "any": "x", "more": {"x": 1}},
        {"id": "B3"},
    ]
    (tmp_path / "items.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    found, unknown, missing = joined(STRINGS, tmp_path / "items.jsonl", "id")
    assert found == {
        "title": [None, "2020-01-01", None, "5", None, None],
        "tags": [None, [["a"], ["b", "c"]], None, None, None, None],
        "day": [None, "2020-01-01", None, None, None, None],
        "any": [None, "1", None, "x", None, None],
        "more": [None, None, None, {"x": 1}, None, None],
    }
    assert (unknown, missing) == (0, 3)


@pytest.mark.parametrize("dtype", [pl.Int32, pl.Int64, pl.Float64, pl.String])
def test_parquet(tmp_path: Path, dtype: Any) -> None:
    ids = pl.Series([7, 30, 8, None]).cast(dtype)
    vectors = pl.Series([[0.1, 2.0], [3.0], [4.0], None], dtype=pl.List(pl.Float32))
    table = pl.DataFrame({"title": ["a", "b", "c", "d"], "item": ids, "vector": vectors, "n": [1, 2, 3, 4]})
    path = tmp_path / "it's [odd]*.parquet"
    table.write_parquet(path)
    pl.DataFrame({"wrong": [1]}).write_parquet(tmp_path / "it's o.parquet")
    found, unknown, missing = joined(INTEGERS, path, "item")
    assert found["vector"] == [vectors[1].to_list(), vectors[0].to_list(), None, None]
    assert found["title"] == ["b", "a", None, None]
    assert found["n"] == [2, 1, None, None]
    assert (unknown, missing) == (2, 2)


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        (
            "a.csv",
            "item_id,t\nB3,1\n7,2\n7,3\nB3,4\n",
            "2 rows have 'B3' in column 'item_id'; keep one of",
        ),
        ("a.csv", "asin,t\nB3,1\n", r"no column 'item_id' \(columns: 'asin', 't'\)"),
        ("a.csv", "item_id,t,t\nB3,1,1\n", "column 't' occurs twice"),
        ("a.csv", "item_id,count\nB3,1\n", "column 'count' is a column of every dataset; rename it"),
        ("a.csv", "item_id\nB3\n", "has no column besides 'item_id'"),
        ("a.csv", "", "is empty; pass a table with a header"),
        ("a.csv", "item_id,t\nX,1\nY,2\n", "none of the 2 ids in column 'item_id' is an item .*such as 'B3'"),
        ("a.csv", "item_id,t\nB3,1\nB4,1,2\n", r"cannot be read \(CSV Error on Line: 3 .*Found: 3\)"),
        ("a.csv", "item_id,t\nB3,\xe9\n", r"cannot be read \(CSV Error on Line: 2 .*not utf-8"),
        ("a.jsonl", '{"item_id": "B3", "t": 1}\n{"item_id"\n', r"cannot be read \(Malformed JSON"),
        ("a.parquet", "item_id,t\nB3,1\n", r"cannot be read \(No magic bytes"),
        ("missing.csv", None, r"cannot be read \(No files found"),
    ],
)
def test_an_unusable_table_is_refused_in_one_line(
    tmp_path: Path, name: str, content: str | None, message: str
) -> None:
    if content is not None:
        (tmp_path / name).write_text(content, "latin-1")
    with pytest.raises(DataError, match=f"{name}: {message}") as caught:
        joined(STRINGS, tmp_path / name)
    assert "\n" not in str(caught.value)
