"""Text of any origin is shown in one harmless line."""

import pytest

from longplay.common.printable import printable


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("B00ABC [bold]:cat:\\n", "B00ABC [bold]:cat:\\n"),
        ("é 日本", "é 日本"),
        ("\x1b[31m\x07\r\n\t\0", r"\x1b[31m\x07\r\n\t\x00"),
        ("\x9b31m\u202e\u2028\xa0\ud800", r"\x9b31m\u202e\u2028\xa0\ud800"),
    ],
)
def test_control_and_invisible_characters_are_escaped(text: str, shown: str) -> None:
    assert printable(text, "utf-8") == shown


def test_characters_that_the_terminal_lacks_are_escaped() -> None:
    assert printable("é 日", "ascii") == r"\xe9 \u65e5"
    assert printable("é 日", "latin-1") == r"é \u65e5"
