"""Read JSON files that may hold anything: parse them strictly and check their content against a type.

Files that Longplay writes for itself are sealed: they hold their own checksum, so that an edit is detected.
"""

import functools
import hashlib
import json
import reprlib
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, TypeVar

from pydantic import Field, TypeAdapter, ValidationError

Shape = TypeVar("Shape")

Natural = Annotated[int, Field(ge=0, le=2**63 - 1)]
Int64 = Annotated[int, Field(ge=-(2**63), le=2**63 - 1)]
Finite = Annotated[float, Field(allow_inf_nan=False)]
JsonObject = dict[str, Any]
_SEAL = "sha256"


class JsonFileError(ValueError):
    """A file cannot be read, is not JSON, or does not have the expected content.

    The message is "FILE: cannot be read (REASON)" or "FILE: is damaged (REASON)", without a remedy.
    """


def read_json(path: Path, shape: type[Shape]) -> Shape:
    """Read a JSON file.

    Args:
        path: a regular file in UTF-8.
        shape: what the file must hold: a dataclass, a TypedDict, or another type that Pydantic checks.
            Text is not accepted for a number, nor a number for text. Other fields of an object are ignored.
            The checksum of a sealed object is checked and left out.

    Raises:
        FileNotFoundError: the file does not exist.
        JsonFileError: as `parse_json`, or the file cannot be read.
    """
    return parse_json(read_content(path), shape, path)


def read_content(path: Path) -> bytes:
    """Return the content of a regular file.

    Raises:
        FileNotFoundError: the file does not exist.
        JsonFileError: the file cannot be read.
    """
    try:
        if path.exists() and not path.is_file():  # reading a named pipe could wait forever
            raise JsonFileError(f"{path}: cannot be read (not a regular file)")
        return path.read_bytes()
    except FileNotFoundError:
        raise
    except OSError as error:
        raise JsonFileError(f"{path}: cannot be read ({error.strerror})") from None


def parse_json(content: bytes, shape: type[Shape], where: object) -> Shape:
    """Parse UTF-8 text as JSON and check it; see `read_json`.

    Args:
        where: the file, for messages.

    Raises:
        JsonFileError: the text is not JSON, has an object with two equal keys or more than 200 levels of
            nesting, does not fit `shape`, or is a sealed object that was edited.
    """
    try:
        plain = _unsealed(content) if _SEAL.encode() in content else content
        value = _adapter(shape).validate_json(plain, strict=True)
        json.loads(content, object_pairs_hook=_check_keys)
    except _EditedError:
        raise JsonFileError(f"{where}: is damaged (its content does not match its {_SEAL})") from None
    except ValidationError as error:
        raise JsonFileError(f"{where}: {_first(error)}") from None
    except ValueError as error:
        raise JsonFileError(f"{where}: cannot be read ({error})") from None
    return value


def check_json(value: object, shape: type[Shape], where: object) -> Shape:
    """Check values that `parse_json` has returned, and return them as `shape`.

    Raises:
        JsonFileError: they do not fit `shape`.
    """
    return parse_json(json.dumps(value).encode(), shape, where)


class _EditedError(Exception):
    """The content of a sealed object does not match its checksum."""


def sealed(content: Mapping[str, Any]) -> JsonObject:
    """Return a JSON object with its SHA-256 as the entry "sha256", which `parse_json` checks."""
    plain = json.loads(json.dumps(content))
    return {**plain, _SEAL: _checksum(plain)}


def _unsealed(content: bytes) -> bytes:
    """Return the content of a sealed object without its checksum, and any other content unchanged."""
    value = _adapter(object).validate_json(content, strict=True)
    if not isinstance(value, dict) or _SEAL not in value:
        return content
    if value.pop(_SEAL) != _checksum(value):
        raise _EditedError
    return json.dumps(value).encode()


def _checksum(content: Mapping[str, Any]) -> str:
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()


@functools.cache
def _adapter(shape: Any) -> TypeAdapter[Any]:
    return TypeAdapter(shape)


def _check_keys(pairs: list[tuple[str, Any]]) -> None:
    found: set[str] = set()
    for name, _ in pairs:
        if name in found:
            raise ValueError(f"{name!r} is given twice")
        found.add(name)


def _first(error: ValidationError) -> str:
    """Return the first problem: "cannot be read (REASON)" or "is damaged (FIELD.ENTRY: REASON)"."""
    first = error.errors(include_url=False)[0]
    reason = first["msg"].removeprefix("Value error, ").removeprefix("Invalid JSON: ")
    if first["type"] == "json_invalid":
        return f"cannot be read (not JSON: {reason})"
    place = ".".join(map(str, first["loc"]))
    if place and first["type"] != "missing":
        place += f"={reprlib.repr(first['input'])}"
    return f"is damaged ({place}: {reason})" if place else f"is damaged ({reason})"
