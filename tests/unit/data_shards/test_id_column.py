"""Original ids of any type are kept, found and fingerprinted exactly."""

import hashlib
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from support.datasets import log_normal_lengths, make_dataset
from support.string_ids import STRANGE, give_string_ids, item_name, user_name

from longplay.data_shards.audit.audit import audit_dataset
from longplay.data_shards.errors import DataError
from longplay.data_shards.storage.dataset import Dataset
from longplay.data_shards.storage.id_column import IdColumn
from longplay.data_shards.storage.manifest import ITEMS_NAME, USERS_NAME, dataset_fingerprint
from longplay.data_shards.storage.verification import find_problems

INT64 = st.integers(-(2**63), 2**63 - 1)
TEXT = st.text(st.characters(exclude_categories=["Cs"]), max_size=20)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("ids") / "set"
    make_dataset(out, log_normal_lengths(40), num_shards=4)
    return give_string_ids(out, strange=True)


@settings(max_examples=60, deadline=None)
@given(st.one_of(st.lists(TEXT, unique=True), st.lists(INT64, unique=True)), st.data())
def test_every_id_is_found_at_its_position_and_no_other_is(ids: list[Any], data: st.DataObject) -> None:
    column = IdColumn(pl.Series(ids, dtype=pl.String if ids and isinstance(ids[0], str) else pl.Int64))
    other = TEXT if column.is_text else INT64
    wanted = data.draw(st.lists(st.one_of(st.sampled_from(ids), other) if ids else other))
    expected = [ids.index(one) if one in ids else -1 for one in wanted]
    assert column.find(column.typed(wanted)).tolist() == expected
    assert column.take(np.arange(len(ids))).tolist() == column.tolist() == ids


def test_strings_with_equal_hashes_are_distinguished(monkeypatch: pytest.MonkeyPatch) -> None:
    true_hash = pl.Series.hash
    monkeypatch.setattr(pl.Series, "hash", lambda self: true_hash(self) % 3)
    ids = [f"id {number}" for number in range(50)]
    column = IdColumn(pl.Series(ids))
    assert column.find(pl.Series([*ids[::-1], "id 50", "id"])).tolist() == [*range(49, -1, -1), -1, -1]


@pytest.mark.parametrize(
    ("column", "wrong"),
    [
        (["a"], [1]),
        (["a"], ["a", 1]),
        (["a"], [None]),
        (["a"], "a"),
        (["a"], [["a"]]),
        (["a"], [b"a"]),
        (["a"], ["\ud800"]),
        ([1], ["1"]),
        ([1], [1.0]),
        ([1], [True]),
        ([1], [2**63]),
        ([1], 1),
        ([1], [[1], [2, 3]]),
    ],
)
def test_ids_of_another_type_are_refused(column: list[Any], wrong: Any) -> None:
    with pytest.raises(ValueError, match=r"not a list of .*; ids here are|not valid Unicode"):
        IdColumn(pl.Series(column)).typed(wrong)


def test_an_integer_is_read_only_if_it_is_given_back_as_it_was() -> None:
    column = IdColumn(pl.Series([1]))
    good = {"5": 5, " +5\t": 5, "-5": -5, "10.0": 10, "1e3": 1000, str(2**63 - 1): 2**63 - 1, "0": 0, "-0": 0}
    good |= {5: 5, 10.0: 10}
    assert column.read(list(good)).to_list() == list(good.values())
    bad = [
        "007",
        "00",
        "1.5",
        str(2**63),
        "inf",
        "nan",
        "",
        "1_0",
        "\u0663",
        f"{2**53}.0",
        "a",
        None,
        True,
        2**63,
    ]
    assert column.read(bad).to_list() == [None] * len(bad)


@pytest.mark.parametrize(
    "ids", [np.array(["a", "bb"]), np.array(["a", "bb"], object), ("a", "bb"), pl.Series(["a", "bb"])]
)
def test_lists_and_arrays_of_strings_are_equal(ids: Any) -> None:
    assert IdColumn(pl.Series(["a"])).typed(ids).to_list() == ["a", "bb"]
    assert IdColumn(pl.Series(["a"])).typed(np.array(ids, np.dtypes.StringDType())).to_list() == ["a", "bb"]


def test_an_example_is_one_short_line() -> None:
    for value in ("x" * 10**6, "\n" * 10**6):
        description = IdColumn(pl.Series([value])).description
        assert len(description) < 99
        assert "\n" not in description
    assert IdColumn(pl.Series(["B00ABC"])).description == "strings such as 'B00ABC'"
    assert IdColumn(pl.Series([2**62])).description == f"integers such as {2**62}"


def test_an_id_column_holds_integers_or_strings() -> None:
    for values in ([1.5], [b"a"], [None, "a"], [None, 1]):
        with pytest.raises(DataError, match="original_id"):
            IdColumn(pl.Series(values))


def test_the_fingerprint_of_integers_is_that_of_their_bytes() -> None:
    items, users = np.array([3, -(2**63)]), np.array([7])
    expected = hashlib.sha256(items.tobytes() + users.tobytes()).hexdigest()[:32]
    assert dataset_fingerprint(items, users, ()) == expected


def test_different_ids_have_different_fingerprints() -> None:
    columns = [
        ["ab", "c"],
        ["a", "bc"],
        ["c", "ab"],
        ["abc"],
        ["1", "2"],
        [1, 2],
        ["", "12"],
        ["12", ""],
        ["é"],
    ]
    columns += [["e\u0301"], ["12"], [12]]
    series = [pl.Series(column) for column in columns]
    found = {dataset_fingerprint(items, users, ()) for items in series for users in series}
    assert len(found) == len(columns) ** 2


def test_a_fingerprint_depends_on_no_chunk_size() -> None:
    ids = pl.Series([f"id {number}" for number in range(1000)])
    parts = pl.concat([ids.slice(0, 7), ids.slice(7, 500), ids.slice(507)], rechunk=False)
    other = pl.Series(pa.chunked_array([ids.to_arrow()]))
    assert len({dataset_fingerprint(column, ids, ()) for column in (ids, parts, other)}) == 1


def test_string_ids_of_a_dataset_are_exact(folder: Path) -> None:
    dataset = Dataset.open(folder)
    assert find_problems(folder) == []
    assert dataset.items.originals(np.arange(1, len(STRANGE) + 1)).tolist() == STRANGE
    assert dataset.items.item_ids(STRANGE).tolist() == list(range(1, len(STRANGE) + 1))
    assert dataset.items.item_ids(["b", "", "A,b"]).tolist() == [0, 1, 0]
    assert sorted(dataset.user_original_ids) == sorted(map(user_name, range(40)))
    assert {*dataset.items.original_ids} <= {*STRANGE, *map(item_name, range(200))}
    audit = audit_dataset(dataset)
    assert audit.item_ids_present is audit.user_ids_present is None


def write_ids(file: Path, ids: pa.Array) -> None:
    table = pq.read_table(file)
    at = table.schema.get_field_index("original_id")
    pq.write_table(table.set_column(at, "original_id", ids), file)


def invalid_utf8(strings: list[str]) -> pa.Array:
    content = [string.encode() for string in strings]
    content[3] = b"\xff"
    return pa.array(content, pa.binary()).view(pa.string())


FAULTS: dict[str, tuple[Callable[[list[str]], pa.Array], str]] = {
    "twice": (lambda ids: pa.array([ids[1], *ids[1:]]), "an original_id occurs twice"),
    "null": (lambda ids: pa.array([None, *ids[1:]], pa.string()), "is not Int64 or String or contains nulls"),
    "invalid UTF-8": (invalid_utf8, "cannot be read .*UTF-8"),
    "bytes": (lambda ids: pa.array(ids, pa.binary()), "is not Int64 or String or contains nulls"),
    "changed": (lambda ids: pa.array(["changed", *ids[1:]]), "dataset_id is"),
    "integers": (lambda ids: pa.array(range(len(ids))), "dataset_id is"),
}


@pytest.mark.parametrize("name", [ITEMS_NAME, USERS_NAME])
@pytest.mark.parametrize("fault", FAULTS)
def test_verification_finds_damaged_ids(folder: Path, tmp_path: Path, fault: str, name: str) -> None:
    change, message = FAULTS[fault]
    copy = Path(shutil.copytree(folder, tmp_path / "set"))
    write_ids(copy / name, change(pl.read_parquet(copy / name)["original_id"].to_list()))
    problems = find_problems(copy)
    assert any(re.search(message, problem) for problem in problems), problems


@pytest.mark.parametrize("fault", ["null", "invalid UTF-8", "bytes"])
def test_unusable_ids_are_refused_on_access(folder: Path, tmp_path: Path, fault: str) -> None:
    copy = Path(shutil.copytree(folder, tmp_path / "set"))
    for name in (ITEMS_NAME, USERS_NAME):
        write_ids(copy / name, FAULTS[fault][0](pl.read_parquet(copy / name)["original_id"].to_list()))
    dataset = Dataset.open(copy)
    with pytest.raises(DataError, match=rf"{ITEMS_NAME}: .*; restore the file or prepare the dataset again"):
        _ = dataset.items
    with pytest.raises(DataError, match=rf"{USERS_NAME}: .*; restore the file or prepare the dataset again"):
        _ = dataset.user_original_ids
