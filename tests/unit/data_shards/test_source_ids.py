"""Ids of any type: which stay integers, which become text, and which are refused."""

from __future__ import annotations

import uuid
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from support.sources import HEADER, found, parquet, refusal, text

from longplay.data_shards.preparation import names as names_module
from longplay.data_shards.storage.dataset import Dataset


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
def test_ids_that_are_not_printed_as_they_are_written_are_strings(tmp_path: Path, other: str) -> None:
    path = text(tmp_path / "a.csv", HEADER + f"1,{other},1\n1,12,2\n")
    assert found(tmp_path, "csv", path) == {1: [(other, 1), ("12", 2)]}


def test_an_integer_column_refuses_other_text(tmp_path: Path) -> None:
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


def test_uuids_become_text(tmp_path: Path) -> None:
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


def test_text_files_share_the_type_that_fits_all(tmp_path: Path) -> None:
    a = text(tmp_path / "a.csv", HEADER + "1,10,1\n1,11,2\n")
    b = text(tmp_path / "b.csv", "timestamp,item_id,user_id\n0.5,B0,1\n")
    assert found(tmp_path, "csv", a, b) == {1: [("B0", 500_000), ("10", 10**6), ("11", 2 * 10**6)]}


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
