"""Show text of any origin on a terminal."""

import sys


def printable(text: str, encoding: str | None = None) -> str:
    """Return text with control, invisible and unknown characters as Python escapes, in one line.

    Args:
        text: any text.
        encoding: what the characters must be known to; None: the encoding of stdout.
    """
    known = encoding or sys.stdout.encoding or "utf-8"
    shown = (one if one.isprintable() else one.encode("unicode_escape").decode() for one in text)
    return "".join(shown).encode(known, "backslashreplace").decode(known)


def short_repr(value: object) -> str:
    """Return `repr(value)`, cut after 60 characters."""
    text = repr(value)
    return text if len(text) <= 60 else f"{text[:60]}..."
