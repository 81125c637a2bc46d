"""Files as other programs write them: nothing of them is lost or altered without a word."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from support.datasets import LENIENT, prepared, sequences
from support.sources import open_source

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
