"""Damage to JSON files: wrong values in every field of a real file, and text that is not JSON."""

import json
from collections.abc import Iterator
from typing import Any

from hypothesis import strategies as st

BIG = [0, -1, 2**31, 2**63, 2**64, 10**30, 10**4000]
NOT_OBJECTS = {
    "empty": b"",
    "cut off": b'{"config": {',
    "not text": b"\xff\xfe\x00",
    "a list": b"[]",
    "a list of lists": b"[[[[]]]]",
    "a number": b"7",
    "text": b'"config"',
    "null": b"null",
    "NaN": b"NaN",
    "nested lists": b"[" * 200_000,
    "nested objects": b'{"config":' * 200_000,
    "nested in a field": b'{"config": ' + b"[" * 200_000 + b"]" * 200_000 + b"}",
    "a number of many digits": b'{"config": ' + b"9" * 100_000 + b"}",
    "two equal keys": b'{"config": {}, "config": {}}',
    "half a character": b'{"config": "\\ud800"}',
}
"""The content of a file by description. All are refused as config.json, manifest.json and so on."""

_SCALARS = (
    st.none() | st.booleans() | st.integers() | st.sampled_from(BIG) | st.floats() | st.text(max_size=6)
)
_VALUES = st.recursive(
    _SCALARS,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=3), inner, max_size=3),
    max_leaves=5,
)
_REMOVED = object()


def edits(document: Any) -> st.SearchStrategy[Any]:
    """Return documents in which one value, at any depth, is removed or replaced by any JSON value."""
    places = list(_places(document))
    change = st.tuples(st.sampled_from(places), _VALUES | st.just(_REMOVED))
    return change.map(lambda drawn: _edited(document, *drawn))


def contents(document: Any) -> st.SearchStrategy[bytes]:
    """Return the content of files: edits of `document`, and what is not a JSON object."""
    edited = edits(document).map(lambda value: json.dumps(value).encode())
    return st.sampled_from(list(NOT_OBJECTS.values())) | edited


def _places(value: Any, path: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    """Yield the path to every value; of a list, to the first two entries."""
    if path:
        yield path
    inner = (
        value.items() if isinstance(value, dict) else enumerate(value[:2]) if isinstance(value, list) else ()
    )
    for key, below in inner:
        yield from _places(below, (*path, key))


def _edited(value: Any, path: tuple[Any, ...], new: Any) -> Any:
    if not path:
        return new
    copy = value.copy()
    if len(path) == 1 and new is _REMOVED:
        del copy[path[0]]
    else:
        copy[path[0]] = _edited(value[path[0]], path[1:], new)
    return copy
