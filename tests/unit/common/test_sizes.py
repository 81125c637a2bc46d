"""Parsing and formatting of byte sizes."""

import argparse

import pytest
from hypothesis import given
from hypothesis import strategies as st

from longplay.common.sizes import gib, mib, parse_bytes, readable_size


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("1", 1),
        ("17b", 17),
        ("4GB", 4 * 10**9),
        ("4GiB", 4 << 30),
        ("4g", 4 << 30),
        ("1.5 MiB", 3 << 19),
        ("2tb", 2 * 10**12),
        (" 2TiB ", 2 << 40),
    ],
)
def test_b_units_are_decimal_and_others_binary(text: str, expected: int) -> None:
    assert parse_bytes(text) == expected


@given(number=st.integers(1, 10**6), power=st.integers(1, 4))
def test_units_are_powers_and_case_insensitive(number: int, power: int) -> None:
    letter = " KMGT"[power]
    for unit, factor in ((f"{letter}B", 1000), (f"{letter}iB", 1024), (letter, 1024)):
        for text in (f"{number}{unit}", f"{number} {unit.lower()}", f"{number}{unit.upper()}"):
            assert parse_bytes(text) == number * factor**power


@pytest.mark.parametrize(
    "text",
    [
        "",
        "GiB",
        "0",
        "0GiB",
        "0.5",
        "-1GiB",
        "24Gigs",
        "1e9",
        "1ib",
        "1,5GiB",
        "nan",
        "9" * 400,
        "1" + "0" * 20,
    ],
)
def test_invalid_size_raises_with_examples(text: str) -> None:
    with pytest.raises(ValueError, match="is not a size; write it as 80GiB, 512MiB or 24GB"):
        parse_bytes(text)


def test_argparse_shows_the_message(capsys: pytest.CaptureFixture[str]) -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--memory", type=parse_bytes)
    with pytest.raises(SystemExit):
        parser.parse_args(["--memory", "much"])
    assert "'much' is not a size; write it as" in capsys.readouterr().err


def test_sizes_are_formatted_in_binary_units() -> None:
    assert mib(3 << 19) == "1.5 MiB"
    assert gib(2048 << 30) == "2,048.00 GiB"
    assert readable_size(3 << 19) == "1.5 MiB"
    assert readable_size(3 << 29) == "1.50 GiB"
