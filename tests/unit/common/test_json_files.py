"""JSON files with any content are refused with the file, the field and the reason."""

import os
from dataclasses import dataclass
from pathlib import Path

import pytest

from longplay.common.json_files import Finite, JsonFileError, Natural, check_json, parse_json, read_json


@dataclass
class Point:
    x: Natural
    y: Finite
    name: str = ""


def test_the_fields_are_read_and_others_are_ignored() -> None:
    assert parse_json(b'{"x": 1, "y": 2, "z": []}', Point, "f") == Point(1, 2.0)
    assert check_json({"x": 1, "y": 0.5, "name": "a"}, Point, "f") == Point(1, 0.5, "a")


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b'{"x": "1", "y": 2}', r"f: is damaged \(x='1': Input should be a valid integer\)"),
        (b'{"x": true, "y": 2}', r"x=True"),
        (b'{"x": -1, "y": 2}', r"x=-1: .* greater than or equal to 0"),
        (b'{"x": 1, "y": NaN}', r"y=nan"),
        (b'{"x": 1, "y": "2"}', r"y='2'"),
        (b'{"x": 1}', r"\(y: Field required\)"),
        (b'{"x": 1, "y": 2, "name": 3}', r"name=3"),
        (b'{"x": 1' + b"0" * 4000 + b', "y": 2}', r"x=1000.*\.\.\..*less than or equal"),
        (b'{"x": 1, "x": 2, "y": 2}', r"f: cannot be read \('x' is given twice\)"),
        (b'{"x": 1, "y": 2, "z": ' + b"[" * 200_000, r"f: cannot be read \(not JSON: recursion limit"),
        (b'{"x": 1, "y": 2, "name": "\xff"}', r"f: cannot be read \(not JSON: invalid unicode"),
        (b"", r"f: cannot be read \(not JSON: EOF"),
    ],
)
def test_the_message_names_the_field_its_value_and_the_reason(content: bytes, message: str) -> None:
    with pytest.raises(JsonFileError, match=message) as caught:
        parse_json(content, Point, "f")
    assert len(str(caught.value)) < 200


def test_what_is_not_a_file_is_refused(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    for name in (".", "pipe"):
        with pytest.raises(JsonFileError, match=r"cannot be read \(not a regular file\)"):
            read_json(tmp_path / name, object)
    with pytest.raises(FileNotFoundError):
        read_json(tmp_path / "gone", object)
