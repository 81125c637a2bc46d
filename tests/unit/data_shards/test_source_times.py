"""Times of any form, their units, and limits of time."""

from __future__ import annotations

import datetime as dt
import json
from pathlib import Path

import pyarrow as pa
import pytest
from support.datasets import sequences
from support.sources import HEADER, found, parquet, refusal, text

from longplay.data_shards.storage.dataset import Dataset
from longplay.launch import prepare


@pytest.mark.parametrize(
    ("times", "stored", "unit"),
    [
        (["5", "6"], [5, 6], None),
        (["5.0", "6.0"], [5, 6], None),
        (["5.25", "6"], [5_250_000, 6_000_000], "us"),
        (["1970-01-02", "1970-01-03"], [86_400_000_000, 172_800_000_000], "us"),
        (["1970-01-01T02:00:00+02:00", "1970-01-01 00:00:01.5"], [0, 1_500_000], "us"),
        (["1970-01-01T00:00:00Z", "1970-01-01T00:00:01-01:00"], [0, 3_601_000_000], "us"),
    ],
)
@pytest.mark.parametrize("format", ["csv", "jsonl"])
def test_times_of_text(
    tmp_path: Path, format: str, times: list[str], stored: list[int], unit: str | None
) -> None:
    rows = [{"user_id": 1, "item_id": item, "timestamp": time} for item, time in enumerate(times)]
    lines = [json.dumps(row) if format == "jsonl" else ",".join(map(str, row.values())) for row in rows]
    path = text(tmp_path / f"a.{format}", HEADER * (format == "csv") + "\n".join(lines))
    assert found(tmp_path, format, path) == {1: [(0, stored[0]), (1, stored[1])]}
    assert Dataset.open(tmp_path / "set").manifest.time_unit == unit


@pytest.mark.parametrize(
    ("kind", "unit", "factor"),
    [
        (pa.timestamp("s"), "us", 10**6),
        (pa.timestamp("ms", "Europe/Berlin"), "us", 10**3),
        (pa.timestamp("us"), "us", 1),
        (pa.timestamp("ns", "UTC"), "ns", 1),
        (pa.date32(), "us", 86_400 * 10**6),
    ],
    ids=str,
)
def test_times_of_parquet(tmp_path: Path, kind: pa.DataType, unit: str, factor: int) -> None:
    times = pa.array([7, 3], pa.int32() if kind == pa.date32() else pa.int64()).cast(kind)
    path = parquet(tmp_path / "a.parquet", user_id=[1, 1], item_id=[5, 6], timestamp=times)
    assert found(tmp_path, "parquet", path) == {1: [(6, 3 * factor), (5, 7 * factor)]}
    assert Dataset.open(tmp_path / "set").manifest.time_unit == unit


def test_without_a_time_the_rows_are_in_order(tmp_path: Path) -> None:
    a, b = (
        text(tmp_path / name, f"user_id,item_id\n{rows}")
        for name, rows in (("a.csv", "1,9\n2,8\n"), ("b.csv", "1,7\n2,7\n"))
    )
    assert found(tmp_path, "csv", b, a, "--time=none") == {1: [(7, 0), (9, 2)], 2: [(7, 1), (8, 3)]}
    assert Dataset.open(tmp_path / "set").manifest.time_unit == "index"


def test_files_of_different_units_are_refused_by_name(tmp_path: Path) -> None:
    old, new = (
        parquet(
            tmp_path / f"{unit}.parquet",
            user_id=[1, 1],
            item_id=[1, 2],
            timestamp=pa.array([1, 2], pa.timestamp(unit)),
        )
        for unit in ("ns", "us")
    )
    assert "times are in ns in the first and in us in the second" in refusal(tmp_path, "parquet", old, new)
    numbers = parquet(tmp_path / "n.parquet", user_id=[1, 1], item_id=[1, 2], timestamp=[1, 2])
    assert f"{new} and {numbers}: the time is date in the first and integer" in refusal(
        tmp_path, "parquet", new, numbers
    )
    dates = text(tmp_path / "d.csv", HEADER + "1,2,2020-01-01\n1,3,2020-01-02\n")
    seconds = text(tmp_path / "s.csv", HEADER + "1,2,1577836800\n1,3,1577836801\n")
    assert "the time is date in the first and integer in the second" in refusal(
        tmp_path, "csv", dates, seconds
    )


def test_timestamps_of_several_resolutions_get_one_unit(tmp_path: Path) -> None:
    first, second = (
        parquet(
            tmp_path / f"{year}.parquet",
            user_id=[1, 1],
            item_id=items,
            timestamp=pa.array(
                [dt.datetime(year, 1, 1, 0, 0, second) for second in (1, 2)], pa.timestamp(unit)
            ),
        )
        for year, unit, items in ((2020, "us", [10, 11]), (2021, "ms", [12, 13]))
    )
    assert [item for item, _ in found(tmp_path, "parquet", first, second)[1]] == [10, 11, 12, 13]


@pytest.mark.parametrize(("option", "kept"), [("--from", [2, 3]), ("--until", [1, 2, 3])])
def test_a_limit_between_two_times_keeps_the_right_side(tmp_path: Path, option: str, kept: list[int]) -> None:
    path = text(
        tmp_path / "a.csv", HEADER + "1,1,1577836800\n1,2,1577836801\n1,3,1577836802\n1,4,1577836803\n"
    )
    limit = {"--from": "2020-01-01T00:00:00.5", "--until": "2020-01-01T00:00:02.5"}[option]
    argv = ["csv", str(path), "--out", str(tmp_path / "set"), "--time-unit", "s", option, limit]
    assert prepare.main(argv) == 0
    (events,) = sequences(Dataset.open(tmp_path / "set")).values()
    assert [item for item, _ in events] == (kept if option == "--until" else [*kept, 4])
