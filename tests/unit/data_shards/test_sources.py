"""Anyone's files: ids of any type, times of any form, filters, patterns, archives and copies."""

from __future__ import annotations

import datetime as dt
import gzip
import io
import json
import lzma
import tarfile
import uuid
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from support.datasets import prepared, sequences
from support.sources import open_source

from longplay.data_shards.errors import DataError
from longplay.data_shards.preparation import names as names_module
from longplay.data_shards.preparation import passes
from longplay.data_shards.preparation.options import PrepareOptions
from longplay.data_shards.preparation.pipeline import prepare_dataset
from longplay.data_shards.readers import parquet as parquet_module
from longplay.data_shards.readers import synthetic
from longplay.data_shards.readers.columns import parse_features
from longplay.data_shards.readers.inputs import check_copies, find_files
from longplay.data_shards.storage.dataset import Dataset
from longplay.launch import prepare

HEADER = "user_id,item_id,timestamp\n"
STRICT = PrepareOptions(max_bad_fraction=0)


def text(path: Path, content: str) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(content)
    return path


def parquet(path: Path, **columns: Any) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    pq.write_table(pa.table(columns), path)
    return path


def found(tmp_path: Path, format: str, *arguments: str | Path) -> dict[Any, list[tuple[Any, int]]]:
    """Return the sequences that a command prepares from files without an unusable row."""
    return sequences(prepared(open_source(format, *arguments), tmp_path / "set", STRICT))


def refusal(tmp_path: Path, format: str, *arguments: str | Path) -> str:
    """Return the message of a command that is refused, after checking that it wrote nothing."""
    with pytest.raises(DataError) as refused:
        prepare_dataset(open_source(format, *arguments), tmp_path / "set", STRICT)
    assert not (tmp_path / "set").exists()
    assert "\n" not in str(refused.value)
    return str(refused.value)


def test_string_ids_are_kept_exactly(tmp_path: Path) -> None:
    ids = ["B00ABC", "007", "7", " 7", "Ünï", "a,b", 'say "x"', "NULL"]
    rows = [
        f'u-{user},"{item.replace(chr(34), chr(34) * 2)}",{time}'
        for user in "ab"
        for time, item in enumerate(ids)
    ]
    path = text(tmp_path / "a.csv", HEADER + "\n".join(rows))
    history = [(item, time) for time, item in enumerate(ids)]
    assert found(tmp_path, "csv", path) == {"u-a": history, "u-b": history}
    assert Dataset.open(tmp_path / "set").items.original_ids.tolist() == sorted(ids)


@pytest.mark.parametrize("other", ["0012", "1_2", "1.2e1", "0xC", "12.5", "1２", "9" * 20, "-", "1e1"])
def test_ids_that_would_not_be_given_back_are_strings(tmp_path: Path, other: str) -> None:
    path = text(tmp_path / "a.csv", HEADER + f"1,{other},1\n1,12,2\n")
    assert found(tmp_path, "csv", path) == {1: [(other, 1), ("12", 2)]}


def test_an_integer_column_refuses_what_it_cannot_give_back(tmp_path: Path) -> None:
    path = text(tmp_path / "a.csv", HEADER + "1,7,1\n1,007,2\n")
    message = refusal(tmp_path, "csv", path, "--item-type=integer")
    assert "line 3: item_id is not an integer ('007')" in message
    assert "--item-type string" in message


@pytest.mark.parametrize(
    ("ids", "expected"),
    [
        (pa.array(["x", "y"]), ["x", "y"]),
        (pa.array(["x", "y"]).dictionary_encode(), ["x", "y"]),
        (pa.array([1, 2], pa.uint8()), [1, 2]),
        (pa.array([2**63 - 1, 5]), [2**63 - 1, 5]),
        (pa.array([2**64 - 1, 5], pa.uint64()), [str(2**64 - 1), "5"]),
        (pa.array([1.0, 2.0**52]), [1, 2**52]),
        (pa.array([1, 2**24 - 1], pa.float32()), [1, 2**24 - 1]),
    ],
    ids=str,
)
def test_ids_of_parquet_keep_the_type_of_their_column(
    tmp_path: Path, ids: pa.Array, expected: list[Any]
) -> None:
    path = parquet(tmp_path / "a.parquet", user_id=[4, 4], item_id=ids, timestamp=[1, 2])
    assert found(tmp_path, "parquet", path) == {4: [(expected[0], 1), (expected[1], 2)]}


def test_uuids_are_given_back_as_text(tmp_path: Path) -> None:
    users = [uuid.UUID(int=number) for number in (5, 5, 2**127, 2**127)]
    column = pa.ExtensionArray.from_storage(
        pa.uuid(), pa.array([user.bytes for user in users], pa.binary(16))
    )
    path = parquet(tmp_path / "a.parquet", user_id=column, item_id=[1, 2, 1, 2], timestamp=[1, 2, 3, 4])
    assert set(found(tmp_path, "parquet", path)) == {str(user) for user in users}


@pytest.mark.parametrize("role", ["item_id", "timestamp"])
def test_32_bit_floats_that_are_not_exact_are_refused(tmp_path: Path, role: str) -> None:
    columns: dict[str, Any] = {"user_id": [1, 1], "item_id": [1, 2], "timestamp": [1, 2]}
    columns[role] = pa.array([978300760.0, 978300700.0], pa.float32())
    path = parquet(tmp_path / "a.parquet", **columns)
    assert f"row 1: {role} is not exact" in refusal(tmp_path, "parquet", path)


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
    assert "times are in ns in the one and in us in the other" in refusal(tmp_path, "parquet", old, new)
    numbers = parquet(tmp_path / "n.parquet", user_id=[1, 1], item_id=[1, 2], timestamp=[1, 2])
    assert f"{new} and {numbers}: the time is date in the one and integer" in refusal(
        tmp_path, "parquet", new, numbers
    )
    dates = text(tmp_path / "d.csv", HEADER + "1,2,2020-01-01\n1,3,2020-01-02\n")
    seconds = text(tmp_path / "s.csv", HEADER + "1,2,1577836800\n1,3,1577836801\n")
    assert "the time is date in the one and integer in the other" in refusal(tmp_path, "csv", dates, seconds)


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


def test_text_files_share_the_type_that_fits_all(tmp_path: Path) -> None:
    a = text(tmp_path / "a.csv", HEADER + "1,10,1\n1,11,2\n")
    b = text(tmp_path / "b.csv", "timestamp,item_id,user_id\n0.5,B0,1\n")
    assert found(tmp_path, "csv", a, b) == {1: [("B0", 500_000), ("10", 10**6), ("11", 2 * 10**6)]}


@pytest.mark.parametrize("format", ["csv", "parquet"])
def test_a_column_that_is_there_twice_is_refused(tmp_path: Path, format: str) -> None:
    path = text(tmp_path / "a.csv", "user_id,item_id,timestamp,timestamp\n1,10,5,100\n1,11,4,101\n")
    if format == "parquet":
        columns = [pa.array(values) for values in ([1, 1], [10, 11], [1, 2], [2, 1])]
        table = pa.Table.from_arrays(columns, names=["user_id", "item_id", "timestamp", "timestamp"])
        pq.write_table(table, path := tmp_path / "a.parquet")
    assert "column 'timestamp' is there 2 times" in refusal(tmp_path, format, path)


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


@pytest.mark.parametrize(
    ("condition", "items"),
    [
        ("rating >= 4", [1, 3]),
        ("rating >= 4.5 OR title LIKE 'b%'", [1, 2]),
        ('"user_id" = 1 AND watched', [1, 2]),
        ("day < '2020-01-03'", [1, 2]),
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


def test_folders_patterns_and_hive_partitions(tmp_path: Path) -> None:
    for year in (2019, 2020):
        parquet(tmp_path / f"p/year={year}/part-0.parquet", user_id=[1], item_id=[year], timestamp=[5])
    text(tmp_path / "p/_SUCCESS", "")
    text(tmp_path / "p/.part.crc", "x")
    everything = {1: [(2019, 5), (2020, 5)]}
    assert found(tmp_path, "parquet", tmp_path / "p") == everything
    assert found(tmp_path / "g", "parquet", tmp_path / "p/*/*.parquet") == everything
    selected = open_source("parquet", tmp_path / "p", "--where=year = '2020'")
    with pytest.raises(DataError, match="nothing left"):
        prepare_dataset(selected, tmp_path / "none", STRICT)
    assert "no file matches" in refusal(tmp_path / "n", "parquet", tmp_path / "*.pq")
    assert "is a folder without files" in refusal(tmp_path / "n", "csv", tmp_path / "p")


ARCHIVES: dict[str, Callable[[bytes], bytes]] = {
    "xz": lzma.compress,
    "gz of two members": lambda content: gzip.compress(content[:30]) + gzip.compress(content[30:]),
}


def zipped(name: str, content: bytes) -> bytes:
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("ml-1m/", "")
        archive.writestr(name, content)
    return file.getvalue()


def tarred(name: str, content: bytes) -> bytes:
    file = io.BytesIO()
    with tarfile.open(fileobj=file, mode="w:gz") as archive:
        member = tarfile.TarInfo(name)
        member.size = len(content)
        archive.addfile(member, io.BytesIO(content))
    return file.getvalue()


@pytest.mark.parametrize("pack", ["xz", "gz of two members", "zip", "tar.gz"])
def test_text_is_read_however_it_is_packed(tmp_path: Path, pack: str) -> None:
    content = (HEADER + "1,2,3\n1,3,4\n").encode()
    made = {"zip": zipped, "tar.gz": tarred}
    packed = ARCHIVES[pack](content) if pack in ARCHIVES else made[pack]("ml-1m/ratings.csv", content)
    (tmp_path / "a.csv").write_bytes(packed)
    assert found(tmp_path, "csv", tmp_path / "a.csv") == {1: [(2, 3), (3, 4)]}


def test_a_preset_finds_its_file_in_an_archive(tmp_path: Path) -> None:
    with zipfile.ZipFile(tmp_path / "ml-1m.zip", "w") as archive:
        archive.writestr("ml-1m/users.dat", "1::F::1::10::48067\n")
        archive.writestr("ml-1m/ratings.dat", "1::10::5::1\n1::11::5::2\n")
    assert found(tmp_path, "ml1m", tmp_path / "ml-1m.zip") == {1: [(10, 1), (11, 2)]}
    message = refusal(tmp_path / "x", "csv", tmp_path / "ml-1m.zip")
    assert "the archive holds 2 files (ml-1m/users.dat, ml-1m/ratings.dat); unpack it" in message


FOREIGN = {
    "UTF-16": ((HEADER + "1,2,3\n").encode("utf-16"), r"is UTF-16 text; convert it with `iconv"),
    "Parquet": (b"PAR1" + bytes(20), r"is a Parquet file; read it with `longplay prepare parquet .*a.csv`"),
    "SQLite": (b"SQLite format 3\x00" + bytes(99), r"is an SQLite database; export a table"),
    "7z": (b"7z\xbc\xaf\x27\x1c" + bytes(99), r"is a 7z archive; unpack it"),
    "cut xz": (lzma.compress(HEADER.encode() * 9999)[:-40], r"cannot be read as text"),
    "cut zip": (zipped("a.csv", HEADER.encode() * 9999)[:-90], r"cannot be read as text"),
}


@pytest.mark.parametrize("kind", FOREIGN)
def test_a_file_that_is_not_text_is_named_for_what_it_is(tmp_path: Path, kind: str) -> None:
    content, message = FOREIGN[kind]
    (tmp_path / "a.csv").write_bytes(content)
    with pytest.raises(DataError, match=message) as refused:
        prepare_dataset(open_source("csv", tmp_path / "a.csv"), tmp_path / "set", STRICT)
    assert str(refused.value).isprintable()


@pytest.mark.parametrize(
    "copy", ["a.csv.gz", "a.csv.1", "a.csv.bak", "a.csv~", "a.csv.old", "a (1).csv", "a copy.csv", "link.csv"]
)
def test_a_copy_of_a_file_is_refused_by_name(tmp_path: Path, copy: str) -> None:
    original = text(tmp_path / "a.csv", HEADER)
    if copy == "link.csv":
        (tmp_path / copy).symlink_to(original)
    else:
        text(tmp_path / copy, HEADER)
    with pytest.raises(DataError, match=r"holds the same data as .*pass only one of them"):
        check_copies(find_files([tmp_path / "*a*" if copy != "link.csv" else tmp_path / "*"], [".csv"]))


def test_a_hash_collision_is_found_and_repaired(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    rows = "".join(f"u{n % 5},i{n * n % 37},{n}\n" for n in range(200))
    path = text(tmp_path / "a.csv", HEADER + rows)
    expected = found(tmp_path, "csv", path)
    seeds, real = [], names_module.hashes

    def weak(names: Any, seed: int) -> np.ndarray:
        seeds.append(seed)
        return real(names, seed) % 7 if seed < 2 else real(names, seed)

    monkeypatch.setattr(names_module, "hashes", weak)
    assert found(tmp_path / "again", "csv", path) == expected
    assert set(seeds) == {0, 1, 2}
    assert (tmp_path / "again/set/items.parquet").read_bytes() == (
        tmp_path / "set/items.parquet"
    ).read_bytes()
    assert Dataset.open(tmp_path / "again/set").dataset_id == Dataset.open(tmp_path / "set").dataset_id


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


def test_no_letter_of_an_id_is_taken_for_white_space(tmp_path: Path) -> None:
    names = ["v1", "v", "1v", "f", "t", "n", "r", "vv"]
    events = "".join(f"v{at % 2},{name},{at}\n" for at, name in enumerate(names))
    assert found(tmp_path, "csv", text(tmp_path / "a.csv", HEADER + events)) == {
        f"v{user}": [(names[at], at) for at in range(user, len(names), 2)] for user in (0, 1)
    }


def test_text_ids_that_are_not_written_as_integers_are_strings(tmp_path: Path) -> None:
    names = ["12e2", "1200", "+5", "5", "-0", "0", "-7"]
    events = "".join(f"1,{name},{at}\n" for at, name in enumerate(names))
    assert found(tmp_path, "csv", text(tmp_path / "a.csv", HEADER + events)) == {
        1: list(zip(names, range(7), strict=True))
    }


@pytest.mark.parametrize("format", ["csv", "jsonl", "s3rec"])
def test_ids_that_are_not_utf8_are_refused_and_not_merged(tmp_path: Path, format: str) -> None:
    lines = {
        "csv": HEADER + "u,caf\xe9,1\nu,caf\xea,2\n",
        "jsonl": "".join(f'{{"user_id":"u","item_id":"caf{c}","timestamp":1}}\n' for c in "\xe9\xea"),
        "s3rec": "u a b\nu caf\xe9 caf\xea\n",
    }
    path = tmp_path / "a.txt"
    path.write_bytes(lines[format].encode("latin-1"))
    assert "not utf8" in (message := refusal(tmp_path, format, path))
    assert "iconv" in message


def test_other_columns_need_not_be_utf8(tmp_path: Path) -> None:
    path = tmp_path / "a.csv"
    path.write_bytes("user_id,item_id,timestamp,title\n1,2,3,caf\xe9\n1,3,4,\n1,3\n".encode("latin-1"))
    dataset = prepared(open_source("csv", path), tmp_path / "set", PrepareOptions(max_bad_fraction=1))
    assert sequences(dataset) == {1: [(2, 3), (3, 4)]}
    assert dataset.manifest.rows_dropped == {"too_few_columns": 1}


@pytest.mark.parametrize("other", ["", "1\t9\n"])
def test_a_line_of_separators_has_missing_fields_whatever_other_lines_hold(
    tmp_path: Path, other: str
) -> None:
    path = text(tmp_path / "a.tsv", "user_id\titem_id\ttimestamp\n1\t2\t3\n\t\t\n1\t3\t4\n" + other)
    dataset = prepared(open_source("csv", path), tmp_path / "set", PrepareOptions(max_bad_fraction=1))
    assert dataset.manifest.rows_dropped["missing:user_id"] == 1


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


def test_parts_with_numbers_are_not_copies(tmp_path: Path) -> None:
    for number in (1, 2):
        text(tmp_path / f"a.csv.0{number}", HEADER + f"1,{number},{number}\n")
    paths = [tmp_path / "a.csv.01", tmp_path / "a.csv.02"]
    assert found(tmp_path, "csv", *paths) == {1: [(1, 1), (2, 2)]}


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


def test_an_archive_in_an_archive_and_an_encrypted_one_are_named(tmp_path: Path) -> None:
    content = zipped("a.csv", HEADER.encode())
    path = tmp_path / "a"
    path.write_bytes(gzip.compress(content))
    assert "unpack it once" in refusal(tmp_path, "csv", path)
    path.write_bytes(pa.compress(tarred("a.csv", HEADER.encode()), "zstd", asbytes=True))
    assert "unpack it once" in refusal(tmp_path, "csv", path)
    encrypted = bytearray(content)
    encrypted[6] |= 1
    encrypted[content.rindex(b"PK\x01\x02") + 8] |= 1
    path.write_bytes(encrypted)
    assert "is encrypted" in refusal(tmp_path, "csv", path)


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


@pytest.mark.parametrize("when", ["before it is read", "while it is read"])
def test_a_file_that_changes_while_it_is_read_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, when: str
) -> None:
    path = text(tmp_path / "a.csv", HEADER + "1,1,1\n1,2")
    source = open_source("csv", path)
    assert source.max_events() > 0

    def finish() -> None:
        with path.open("a") as file:
            file.write("34,2\n")

    if when == "before it is read":
        finish()
    else:
        monkeypatch.setattr(passes, "write_runs", lambda *_, **__: finish())
    with pytest.raises(DataError, match=r"a\.csv: changed while it was read; wait until it is complete"):
        prepare_dataset(source, tmp_path / "set", STRICT)


def test_generated_events_do_not_depend_on_their_blocks(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source = synthetic.SyntheticSource(users=100, items=50, events=5000)
    whole = prepared(source, tmp_path / "whole", STRICT)
    monkeypatch.setattr(synthetic, "BLOCK_ROWS", 999)
    assert prepared(source, tmp_path / "set", STRICT).dataset_id == whole.dataset_id


@pytest.mark.parametrize("order", [("a.csv", "b.csv"), ("b.csv", "a.csv")])
def test_a_column_that_is_empty_in_one_file_keeps_its_type(tmp_path: Path, order: tuple[str, str]) -> None:
    text(tmp_path / "a.csv", "user_id,item_id,timestamp,rating\n1,1,1,\n1,2,2,\n")
    text(tmp_path / "b.csv", "user_id,item_id,timestamp,rating\n1,3,3,4\n1,4,4,5\n")
    paths = [tmp_path / name for name in order]
    assert found(tmp_path, "csv", *paths, "--where", "rating >= 4") == {1: [(3, 3), (4, 4)]}
