"""Locations of a dataset and its files: local paths, or URLs that WebDataset's `gopen` reads."""

from __future__ import annotations

import os
import re
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any
from urllib.parse import urlparse
from urllib.request import url2pathname

import numpy as np
from webdataset.gopen import gopen, gopen_schemes

from longplay.data_shards.errors import DataError

Location = Path | str
"""A local folder or file is a Path; any other location that `gopen` reads is a URL."""

NUM_TRIES = 3
RETRY_PAUSES_S = (0.2, 1.0)  # after the first and the second failure
_BLOCK_BYTES = 4 << 20
_CURL_ERRORS = {
    6: "no such host",
    7: "cannot connect",
    18: "the transfer was cut off",
    22: "the server returned an error status such as 404",
    28: "timed out",
    52: "the server sent an empty reply",
    56: "the connection was reset",
}


def parse_location(text: Path | str) -> Location:
    """Return a Path for a local path or a `file:` URL, and any other URL without trailing slashes.

    Raises:
        DataError: `gopen` cannot read URLs of this scheme.
    """
    if isinstance(text, Path):
        return text
    scheme = re.match(r"([a-zA-Z][a-zA-Z0-9+.-]*):", text)
    if scheme is None or not (scheme[1].lower() in _schemes() or text.startswith("//", scheme.end())):
        return Path(text)
    if scheme[1].lower() == "file":
        return Path(url2pathname(urlparse(text).path))
    if scheme[1].lower() not in _schemes():
        raise DataError(
            f"{text}: unsupported scheme; use one of {', '.join(sorted(_schemes()))}; "
            "pipe:COMMAND reads the output of a command"
        )
    return text.rstrip("/")


def in_folder(folder: Location, name: str) -> Location:
    """Return the location of the file `name` in a folder or below a URL."""
    return folder / name if isinstance(folder, Path) else f"{folder}/{name}"


def absolute(location: Location) -> str:
    """Return the location as text that does not depend on the working directory."""
    return str(location.resolve()) if isinstance(location, Path) else location


def read_whole(
    location: Location, num_bytes: int | None = None, check: Callable[[np.ndarray], None] | None = None
) -> np.ndarray:
    """Read a whole file as (num_bytes,) uint8. Try a URL up to three times.

    Args:
        location: the file.
        num_bytes: expected size; None accepts any size.
        check: raises ValueError if the content is wrong.

    Raises:
        FileNotFoundError: a local file is missing.
        OSError, ValueError: the file cannot be read, has another size, or fails `check`.
        DataError: the program or package that reads such URLs is not installed.
    """
    if isinstance(location, Path):
        return _read_once(os.path.abspath(location), num_bytes, check)
    for pause in (*RETRY_PAUSES_S, None):
        try:
            return _read_once(location, num_bytes, check)
        except FileNotFoundError as error:
            program = error.filename or "the program"
            raise DataError(
                f"{location}: needs {program}, which is not installed; install it, or copy the dataset to a "
                "local folder"
            ) from None
        except ImportError as error:
            raise DataError(
                f"{location}: {error}; install that package, or copy the dataset to a local folder"
            ) from None
        except (OSError, ValueError) as error:
            if pause is None:
                raise type(error)(f"{error}; tried {NUM_TRIES} times") from error
        time.sleep(pause)
    raise AssertionError("unreachable")


def _read_once(url: str, num_bytes: int | None, check: Callable[[np.ndarray], None] | None) -> np.ndarray:
    stream: Any = gopen(url, mode="rb")
    try:
        with stream:
            content = _read_stream(stream) if num_bytes is None else _read_into(stream, num_bytes)
    except OSError as error:
        status = getattr(stream, "status", None)
        if not status:
            raise
        program = stream.args[0][0]
        program = program if isinstance(program, str) else program[0]
        cause = _CURL_ERRORS.get(status, "") if program == "curl" else ""
        raise OSError(f"{program} exited with status {status}{cause and f': {cause}'}") from error
    if check is not None:
        check(content)
    return content


def _read_stream(stream: Any) -> np.ndarray:
    blocks = []
    while block := stream.read(_BLOCK_BYTES):
        blocks.append(block)
    return np.frombuffer(b"".join(blocks), np.uint8)


def _read_into(stream: Any, num_bytes: int) -> np.ndarray:
    """Read a whole stream of exactly `num_bytes` bytes.

    Raises:
        ValueError: the stream has another size.
    """
    content, found = np.empty(num_bytes, np.uint8), 0
    view = content.data
    while found < num_bytes:
        if hasattr(stream, "readinto"):
            got = stream.readinto(view[found:])
        else:  # gopen's pipes: their `read` checks the program's exit code
            block = stream.read(min(_BLOCK_BYTES, num_bytes - found))
            got = len(block)
            view[found : found + got] = block
        if not got:
            raise ValueError(f"has {found} bytes, expected {num_bytes}")
        found += got
    if stream.read(1):
        raise ValueError(f"has more than the expected {num_bytes} bytes")
    return content


def _schemes() -> set[str]:
    return {"file", *gopen_schemes} - {"__default__"}
