"""Show text of any origin on a terminal."""


def printable(text: str) -> str:
    """Return text with its control characters, line breaks and invisible characters as Python escapes."""
    if text.isprintable():
        return text
    return "".join(one if one.isprintable() else one.encode("unicode_escape").decode() for one in text)
