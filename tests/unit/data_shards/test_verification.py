"""Verification finds and reports all damage in one pass."""

from __future__ import annotations

import dataclasses
import hashlib
import io
import json
import re
import shutil
import tarfile
from collections.abc import Callable
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import polars as pl
import pytest
from support.datasets import edit_manifest, log_normal_lengths, make_dataset
from support.feature_sets import write_dataset

from longplay.data_shards.errors import DataError
from longplay.data_shards.storage.manifest import ITEMS_NAME, MANIFEST_NAME, USERS_NAME, Manifest
from longplay.data_shards.storage.verification import find_problems

SHARD = "shard-000001.tar"
Block = dict[str, Any]


class Fault(Protocol):
    """Return the members of a shard's only block, damaged."""

    def __call__(self, block: Block) -> Block: ...


@pytest.fixture(scope="module")
def intact(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("verification") / "set"
    make_dataset(out, log_normal_lengths(40), num_shards=4)
    return out


@pytest.fixture
def folder(intact: Path, tmp_path: Path) -> Path:
    """Return a copy of the dataset to damage."""
    return Path(shutil.copytree(intact, tmp_path / "set"))


def assert_found(folder: Path, *patterns: str) -> None:
    """Assert that the problems match the patterns, one by one."""
    problems = find_problems(folder)
    assert len(problems) == len(patterns), problems
    for problem, pattern in zip(problems, patterns, strict=True):
        assert re.search(pattern, problem), problem
        assert "\n" not in problem


def test_an_intact_dataset_has_no_problems(intact: Path) -> None:
    assert find_problems(intact) == []


def test_times_of_the_whole_range_of_64_bits_have_no_problem(tmp_path: Path) -> None:
    times = np.array([-(2**63), 2**63 - 1, 0, 1])
    write_dataset(tmp_path / "set", np.array([2, 2]), np.array([1, 2, 1, 2]), times, num_shards=1)
    assert find_problems(tmp_path / "set") == []


def test_other_files_in_the_folder_are_ignored(folder: Path) -> None:
    (folder / "inspect.png").write_bytes(b"a picture")
    assert find_problems(folder) == []


def test_a_folder_without_a_manifest_is_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="not a prepared dataset"):
        find_problems(tmp_path)


def test_a_flipped_byte_is_found_at_any_offset(folder: Path) -> None:
    content = (folder / SHARD).read_bytes()
    for offset in range(0, len(content), len(content) // 40):
        (folder / SHARD).write_bytes(content[:offset] + bytes([content[offset] ^ 1]) + content[offset + 1 :])
        assert find_problems(folder)[0] == f"{SHARD}: content does not match its checksum in the manifest"


def test_missing_truncated_and_extended_shards_are_all_named(folder: Path) -> None:
    (folder / "shard-000000.tar").unlink()
    size = (folder / SHARD).stat().st_size
    with (folder / SHARD).open("r+b") as file:
        file.truncate(size // 2)
    with (folder / "shard-000003.tar").open("ab") as file:
        file.write(b"more")
    assert_found(
        folder,
        "^shard-000000.tar: is missing",
        f"^{SHARD}: has {size // 2} bytes, expected {size}$",
        f"^{SHARD}: ",
        r"^shard-000003.tar: has \d+ bytes, expected \d+$",
        r"^items.parquet: counts were not compared with the events, because 2 shards are unusable",
    )


def test_the_shards_are_checked_even_if_a_table_is_truncated(folder: Path) -> None:
    (folder / ITEMS_NAME).write_bytes((folder / ITEMS_NAME).read_bytes()[:-10])
    (folder / USERS_NAME).unlink()
    (folder / SHARD).unlink()
    assert_found(
        folder,
        "^users.parquet: is missing",
        "^items.parquet: cannot be read",
        f"^{SHARD}: is missing",
        "not compared",
    )


def alter(path: Path, column: str, change: Callable[[np.ndarray], np.ndarray]) -> None:
    table = pl.read_parquet(path)
    table.with_columns(pl.Series(column, change(table[column].to_numpy().copy()))).write_parquet(path)


def swap_ends(values: np.ndarray) -> np.ndarray:
    values[[0, -1]] = values[[-1, 0]]
    return values


TABLE_FAULTS = {
    "original items": (
        (ITEMS_NAME, "original_id", swap_ends),
        [r"^manifest.json: dataset_id is \w+, but the original ids"],
    ),
    "original users": (
        (USERS_NAME, "original_id", swap_ends),
        [r"^manifest.json: dataset_id is \w+, but the original ids"],
    ),
    "same original": (
        (ITEMS_NAME, "original_id", lambda ids: np.full_like(ids, 3)),
        ["^items.parquet: an original_id occurs twice", "dataset_id"],
    ),
    "counts": (
        (ITEMS_NAME, "count", swap_ends),
        [
            r"^items.parquet: counts are not descending at row \d+",
            r"^items.parquet: count of row 0 is .*\(and 1 more differ\)",
        ],
    ),
    "one count": (
        (ITEMS_NAME, "count", lambda counts: counts + (np.arange(len(counts)) == 0)),
        [
            "^items.parquet: counts add up to",
            r"^items.parquet: count of row 0 is \d+, but the shards have \d+$",
        ],
    ),
    "item ids": (
        (ITEMS_NAME, "item_id", lambda ids: ids - 1),
        [r"^items.parquet: item_id of row 0 is 0, expected 1 \(and \d+ more differ\)"],
    ),
    "no integers": (
        (ITEMS_NAME, "count", lambda counts: counts.astype(np.float64)),
        ["^items.parquet: column count is not Int64"],
    ),
    "lengths": (
        (USERS_NAME, "num_events", lambda lengths: lengths + (np.arange(len(lengths)) == 3)),
        [r"^shard-000000.tar: number of events of user 3 is \d+, but users.parquet has \d+"],
    ),
    "shards": (
        (USERS_NAME, "shard", swap_ends),
        [r"^users.parquet: shard of row 0 is 3, expected 0 \(and 1 more differ\)"],
    ),
}


@pytest.mark.parametrize("fault", TABLE_FAULTS)
def test_an_altered_table_is_found(folder: Path, fault: str) -> None:
    (name, column, change), patterns = TABLE_FAULTS[fault]
    alter(folder / name, column, change)
    assert_found(folder, *patterns)


def test_a_table_with_missing_rows_is_found(folder: Path) -> None:
    pl.read_parquet(folder / USERS_NAME).head(-1).write_parquet(folder / USERS_NAME)
    assert_found(folder, "^users.parquet: has 39 rows, expected 40")


def rewrite_shard(folder: Path, change: Fault) -> None:
    """Change the members of a shard and update its checksum in the manifest."""
    with tarfile.open(folder / SHARD) as tar:
        contents = {member.name: file for member in tar.getmembers() if (file := tar.extractfile(member))}
        block = {
            name: json.load(file) if name.endswith("json") else np.load(io.BytesIO(file.read()))
            for name, file in contents.items()
        }
    with tarfile.open(folder / SHARD, "w") as tar:
        for name, value in change(block).items():
            buffer = io.BytesIO()
            if name.endswith("json"):
                buffer.write(json.dumps(value).encode())
            else:
                np.save(buffer, value)
            info = tarfile.TarInfo(name)
            info.size = buffer.tell()
            buffer.seek(0)
            tar.addfile(info, buffer)
    manifest = Manifest.read(folder)
    content = (folder / SHARD).read_bytes()
    updated = [
        dataclasses.replace(shard, num_bytes=len(content), sha256=hashlib.sha256(content).hexdigest())
        if shard.name == SHARD
        else shard
        for shard in manifest.shards
    ]
    dataclasses.replace(manifest, shards=tuple(updated)).write(folder)


KEY = "0000000010"
ITEMS, LENGTHS, TIMES, ABOUT = f"{KEY}.items.npy", f"{KEY}.lengths.npy", f"{KEY}.times.npy", f"{KEY}.json"


def zero_an_item(block: Block) -> Block:
    block[ITEMS][0] = 0
    return block


def add_an_unknown_item(block: Block) -> Block:
    block[ITEMS][:2] = 10**6
    return block


def decrease_a_time(block: Block) -> Block:
    times = block[TIMES].astype(np.int64)
    times[block[LENGTHS][0] - 1] -= 10**6
    return block | {TIMES: times}


def remove_a_user(block: Block) -> Block:
    kept = int(block[LENGTHS][:-1].sum())
    return block | {LENGTHS: block[LENGTHS][:-1], ITEMS: block[ITEMS][:kept], TIMES: block[TIMES][:kept]}


def remove_an_event(block: Block) -> Block:
    block[LENGTHS][0] -= 1
    return block | {ITEMS: block[ITEMS][1:], TIMES: block[TIMES][1:]}


def remove_an_item(block: Block) -> Block:
    return block | {ITEMS: block[ITEMS][1:]}


def widen_to_int64(block: Block) -> Block:
    return block | {ITEMS: block[ITEMS].astype(np.int64)}


def rename(block: Block) -> Block:
    return {f"9{name[1:]}": value for name, value in block.items()}


def name_another_user(block: Block) -> Block:
    block[ABOUT]["first_user"] = 11
    return block


def remove_the_times(block: Block) -> Block:
    del block[TIMES]
    return block


FAULTS = {
    zero_an_item: [r"1 item ids are outside 1\.\.\d+, first 0$", "not compared"],
    add_an_unknown_item: [r"2 item ids are outside 1\.\.\d+, first 1000000$", "not compared"],
    decrease_a_time: [
        "times decrease within a user at 1 events, first in user 10$",
        "time_quantiles range from",
    ],
    remove_a_user: ["has 9 users, expected 10$", "events, expected", "count of row"],
    remove_an_event: [r"number of events of user 10 is \d+", "events, expected", "count of row"],
    remove_an_item: [
        r"is damaged \(block 0000000010 has different numbers of items and times",
        "not compared",
    ],
    widen_to_int64: [r"is damaged \(0000000010.items.npy is int64", "not compared"],
    rename: [r"is damaged \(contains 9000000010.items.npy instead of 0000000010.items.npy", "not compared"],
    name_another_user: [r"is damaged \(0000000010.json is \{.*'first_user': 11", "not compared"],
    remove_the_times: [r"is damaged \(contains no more files instead of 0000000010.times", "not compared"],
}


@pytest.mark.parametrize("fault", [*FAULTS], ids=lambda fault: fault.__name__)
def test_wrong_content_with_a_matching_checksum_is_found(folder: Path, fault: Fault) -> None:
    rewrite_shard(folder, fault)
    shard, *others = FAULTS[fault]
    assert_found(
        folder, r"^manifest.json: dataset_id is \w+, but the original ids", f"^{SHARD}: {shard}", *others
    )


def test_rows_that_do_not_add_up_are_found(folder: Path) -> None:
    edit_manifest(folder, rows_in=Manifest.read(folder).rows_in + 1)
    assert_found(folder, r"manifest.json: is damaged \(rows do not add up: ")


def test_a_truncated_manifest_is_found(folder: Path) -> None:
    (folder / MANIFEST_NAME).write_text((folder / MANIFEST_NAME).read_text()[:-20])
    assert_found(folder, r"manifest.json: cannot be read")
