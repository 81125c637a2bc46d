"""Locations of a dataset and its files: local paths or URLs."""

from __future__ import annotations

import re
import shlex
import time
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING
from urllib.parse import urlparse
from urllib.request import url2pathname

import numpy as np

from longplay.data_shards.errors import DataError, PermanentError
from longplay.data_shards.storage.command_output import CommandOutput

if TYPE_CHECKING:
    from longplay.data_shards.storage.http_file import HttpFile

Location = Path | str
"""A local folder or file is a Path; the location of anything else is a URL."""

MIN_PROGRESS_BYTES = 64 << 10
RETRY_PAUSES_S = (0.2, 1.0, 5.0)  # after the first, the second and the third failure
_CURL = ("curl", "--fail", "--silent", "--location", "{url}")
_COMMANDS = {
    "ais": ("ais", "get", "{url}", "-"),
    "ftps": _CURL,
    "gs": ("gsutil", "cat", "{url}"),
    "scp": _CURL,
    "sftp": _CURL,
}
"""The commands that WebDataset runs for these schemes."""
_SCHEMES = ("file", "http", "https", "pipe", *_COMMANDS)


def parse_location(text: Path | str) -> Location:
    """Return a Path for a local path or a `file:` URL, and any other URL without trailing slashes.

    Raises:
        DataError: URLs of this scheme cannot be read.
    """
    if isinstance(text, Path):
        return text
    scheme = re.match(r"([a-zA-Z][a-zA-Z0-9+.-]*):", text)
    if scheme is None or not (scheme[1].lower() in _SCHEMES or text.startswith("//", scheme.end())):
        return Path(text)
    if scheme[1].lower() == "file":
        return Path(url2pathname(urlparse(text).path))
    if scheme[1].lower() not in _SCHEMES:
        raise DataError(
            f"{text}: unsupported scheme; use one of {', '.join(sorted(_SCHEMES))}; "
            "pipe:COMMAND reads the output of a command"
        )
    return scheme[1].lower() + text[scheme.end(1) :].rstrip("/")


def trusted_location(text: str, file: Path) -> Location:
    """Return the location that a file names; only a location that the user types may run a command.

    Args:
        file: the file that holds `text`, for the message.

    Raises:
        DataError: the location is a command, or as `parse_location`.
    """
    location = parse_location(text)
    if isinstance(location, str) and location.startswith("pipe:"):
        raise DataError(
            f"{file}: its dataset is the command {location!r}, and commands in files are not run; to run it, "
            f"give --data {shlex.quote(location)}"
        )
    return location


def in_folder(folder: Location, name: str) -> Location:
    """Return the location of the file `name` in a folder or below a URL."""
    return folder / name if isinstance(folder, Path) else f"{folder}/{name}"


def absolute(location: Location) -> str:
    """Return the location as text that does not depend on the working directory."""
    return str(location.resolve()) if isinstance(location, Path) else location


def read_whole(
    location: Location, num_bytes: int | None = None, check: Callable[[np.ndarray], None] | None = None
) -> np.ndarray:
    """Read a whole file as (num_bytes,) uint8. Try a URL up to four times.

    A transfer over HTTP that is broken off continues where it stopped, and does not count as a failure if it
    brought MIN_PROGRESS_BYTES. Content that fails a check is read again from the beginning.

    Args:
        location: the file.
        num_bytes: expected size; None accepts any size.
        check: raises ValueError if the content is wrong.

    Raises:
        FileNotFoundError: a local file is missing.
        OSError, ValueError: the file cannot be read, has another size, or fails `check`.
    """
    if isinstance(location, Path):
        content = np.frombuffer(location.read_bytes(), np.uint8)
        _check(content, num_bytes, check)
        return content
    source, received, failures = _open_url(location), bytearray(), 0
    while True:
        before = len(received)
        try:
            for block in source.blocks(before):
                received += block
                if num_bytes is not None and len(received) > num_bytes:
                    break
            content = np.frombuffer(received, np.uint8)
            _check(content, num_bytes, check)
            return content
        except PermanentError:
            raise
        except (OSError, ValueError) as error:
            broken_off = isinstance(error, OSError) and source.resumable
            failures += not (broken_off and len(received) - before >= MIN_PROGRESS_BYTES)
            if failures > len(RETRY_PAUSES_S):
                raise type(error)(f"{error}; tried {failures} times") from error
            if not broken_off:
                received = bytearray()
            time.sleep(RETRY_PAUSES_S[max(0, failures - 1)])


def _check(content: np.ndarray, num_bytes: int | None, check: Callable[[np.ndarray], None] | None) -> None:
    if num_bytes is not None and len(content) > num_bytes:
        raise ValueError(f"has more than the expected {num_bytes} bytes")
    if num_bytes is not None and len(content) < num_bytes:
        raise ValueError(f"has {len(content)} bytes, expected {num_bytes}")
    if check is not None:
        check(content)


def _open_url(url: str) -> HttpFile | CommandOutput:
    scheme, _, rest = url.partition(":")
    scheme = scheme.lower()
    if scheme == "pipe":
        return CommandOutput(["sh", "-c", rest])
    if scheme in _COMMANDS:
        return CommandOutput([word.format(url=url) for word in _COMMANDS[scheme]])
    from longplay.data_shards.storage.http_file import HttpFile  # importing requests takes 0.1 s

    return HttpFile(url)
