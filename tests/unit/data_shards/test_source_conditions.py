"""`--where`: which rows it selects and which conditions it refuses."""

from __future__ import annotations

import datetime as dt
import json
from pathlib import Path
from typing import Any

import pytest
from support.datasets import prepared, sequences
from support.sources import HEADER, STRICT, found, open_source, parquet, refusal, text


@pytest.mark.parametrize(
    ("condition", "items"),
    [
        ("rating >= 4", [1, 3]),
        ("rating >= 4.5 OR title LIKE 'b%'", [1, 2]),
        ('"user_id" = 1 AND watched', [1, 2]),
        ("day < '2020-01-03'", [1, 2]),
        ("rating >= 4 -- good ones", [1, 3]),
    ],
)
@pytest.mark.parametrize("format", ["csv", "jsonl", "parquet"])
def test_where_selects_rows(tmp_path: Path, format: str, condition: str, items: list[int]) -> None:
    columns: dict[str, list[Any]] = {
        "user_id": [1] * 4,
        "item_id": [1, 2, 3, 4],
        "timestamp": [1, 2, 3, 4],
        "rating": [5.0, 3.5, 4.0, None],
        "title": ["a", "b, c", "c", None],
        "watched": [True, True, False, None],
        "day": [dt.datetime(2020, 1, day, tzinfo=dt.UTC) for day in (1, 2, 3, 4)],
    }
    path = tmp_path / f"a.{format}"
    rows = [dict(zip(columns, values, strict=True)) for values in zip(*columns.values(), strict=True)]
    if format == "parquet":
        parquet(path, **columns)
    elif format == "jsonl":
        text(path, "".join(json.dumps(row, default=str) + "\n" for row in rows))
    else:
        lines = [
            ",".join("" if value is None else f'"{value}"' for value in row.values()) + "\n" for row in rows
        ]
        text(path, ",".join(columns) + "\n" + "".join(lines))
    dataset = prepared(open_source(format, path, f"--where={condition}"), tmp_path / "set", STRICT)
    assert [item for item, _ in sequences(dataset)[1]] == items
    assert dataset.manifest.rows_dropped == {"not_selected": 2}


@pytest.mark.parametrize(
    "condition", ["rating >", "no_such > 1", "sum(item_id) > 3", "item_id", "1; DROP TABLE x"]
)
def test_a_bad_condition_is_refused(tmp_path: Path, condition: str) -> None:
    path = text(tmp_path / "a.csv", HEADER + "1,a,3\n1,b,4\n")
    assert "--where" in refusal(tmp_path, "csv", path, f"--where={condition}")


def test_a_condition_cannot_read_files(tmp_path: Path) -> None:
    path = text(tmp_path / "a.csv", HEADER + "1,2,3\n1,3,4\n")
    condition = f"exists (SELECT 1 FROM read_text('{path}'))"
    assert "--where" in refusal(tmp_path, "csv", path, f"--where={condition}")


@pytest.mark.parametrize(
    "condition",
    [
        "random() < 0.5",
        "now() > '2020-01-01'",
        "current_date > '2020-01-01'",
        "row_number() OVER () < 3",
        "avg(rating) > 1",
        "rating = (SELECT max(rating) FROM block)",
        "unnest([true, true])",
        "true; SELECT 1",
        "rating > 1) AND (true",
        "true), (false",
        "COLUMNS(*) > 1",
        "c0 = '1'",
    ],
)
def test_a_condition_that_depends_on_more_than_the_row_is_refused(tmp_path: Path, condition: str) -> None:
    path = text(tmp_path / "a.csv", "user_id,item_id,timestamp,rating\n1,1,1,4\n1,2,2,5\n1,3,3,1\n")
    assert "--where" in refusal(tmp_path, "csv", path, "--where", condition)


def test_a_condition_is_evaluated_on_a_file_with_an_unnamed_column(tmp_path: Path) -> None:
    path = text(tmp_path / "a.csv", ",user_id,item_id,timestamp\n0,1,1,1\n1,1,2,2\n2,1,3,3\n")
    assert found(tmp_path, "csv", path, "--where", "item_id >= 2") == {1: [(2, 2), (3, 3)]}


@pytest.mark.parametrize("order", [("a.csv", "b.csv"), ("b.csv", "a.csv")])
def test_a_column_that_is_empty_in_one_file_keeps_its_type(tmp_path: Path, order: tuple[str, str]) -> None:
    text(tmp_path / "a.csv", "user_id,item_id,timestamp,rating\n1,1,1,\n1,2,2,\n")
    text(tmp_path / "b.csv", "user_id,item_id,timestamp,rating\n1,3,3,4\n1,4,4,5\n")
    paths = [tmp_path / name for name in order]
    assert found(tmp_path, "csv", *paths, "--where", "rating >= 4") == {1: [(3, 3), (4, 4)]}
