"""Download the input files that a command names by URL, before they are read.

A broken transfer continues where it stopped, also in a later command, unless the file on the server has
changed.
"""

from __future__ import annotations

import time
from argparse import ArgumentTypeError
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from urllib.parse import unquote, urlparse
from urllib.request import url2pathname

from longplay.common.locks import FolderLock, FolderLockedError, lock_file
from longplay.data_shards.errors import DataError, PermanentError
from longplay.data_shards.storage.locations import MIN_PROGRESS_BYTES, RETRY_PAUSES_S
from longplay.data_shards.storage.manifest import fingerprint


def input_path(text: str) -> Path | str:
    """Parse a path argument: an `http:` or `https:` URL stays text, a local path becomes a Path.

    Raises:
        ArgumentTypeError: URLs of this scheme cannot be read.
    """
    scheme, separator, _ = text.partition("://")
    if not separator or scheme.lower() == "file":
        return Path(url2pathname(urlparse(text).path) if separator else text)
    if scheme.lower() not in ("http", "https"):
        raise ArgumentTypeError(
            f"{text}: only http and https URLs can be read; copy the file to this machine first"
        )
    return text


@contextmanager
def downloaded(urls: Sequence[str], folder: Path) -> Iterator[dict[str, Path]]:
    """Download files and yield URL -> copy. The copies are deleted if the block ends without an error.

    Args:
        urls: `http:` or `https:` URLs.
        folder: where the copies go.

    Raises:
        DataError: a file cannot be downloaded, or another process downloads into `folder`.
    """
    if not urls:
        yield {}
        return
    folder.mkdir(parents=True, exist_ok=True)
    try:
        lock = FolderLock(folder)
    except FolderLockedError:
        raise DataError(f"{folder}: another process is downloading into it; wait for it") from None
    with lock:
        copies = {url: _download(url, folder) for url in urls}
        yield copies
        for path in (*copies.values(), lock_file(folder)):
            path.unlink(missing_ok=True)
    with suppress(OSError):  # the folder holds other files
        folder.rmdir()


def _download(url: str, folder: Path) -> Path:
    """Download a file, or continue its transfer, and return the path of the complete copy.

    Raises:
        DataError: the file cannot be downloaded.
    """
    from longplay.data_shards.storage.http_file import HttpFile  # importing requests takes 0.1 s

    source, part, target, failures = HttpFile(url), None, folder, 0
    while True:
        begin = received = 0 if part is None else part.stat().st_size
        try:
            blocks = source.blocks(begin)
            block = next(blocks, b"")
            if part is None:
                target = folder / _name(url, source.version)
                part = target.with_name(f"{target.name}.part")
                if source.version is None:  # the file may have changed since an earlier command
                    target.unlink(missing_ok=True)
                    part.unlink(missing_ok=True)
                if target.exists():
                    return target
                part.touch()
                if part.stat().st_size:
                    continue
            while block:
                received += _append(part, block)
                block = next(blocks, b"")
            return part.replace(target)
        except PermanentError as error:
            raise DataError(f"{url}: cannot be read ({error}); check the URL") from error
        except DataError:
            raise
        except (OSError, ValueError) as error:
            # The file has changed, or the part is too long.
            if isinstance(error, ValueError) and part is not None:
                part.unlink()
                part = None
            failures += received - begin < MIN_PROGRESS_BYTES
            if failures > len(RETRY_PAUSES_S):
                raise DataError(
                    f"{url}: cannot be read ({error}; tried {failures} times); repeat the command, which "
                    f"continues the transfer from {folder}"
                ) from error
            time.sleep(RETRY_PAUSES_S[max(0, failures - 1)])


def _append(path: Path, block: bytes) -> int:
    """Append to a file and return the number of bytes written.

    Raises:
        DataError: the file cannot be written, for example because the disk is full.
    """
    try:
        with path.open("ab") as file:
            return file.write(block)
    except OSError as error:
        raise DataError(
            f"{path}: cannot be written ({error.strerror}); free disk space and repeat the command, or "
            "choose another --scratch"
        ) from error


def _name(url: str, version: Sequence[str | None] | None) -> str:
    """Return the name of a copy: a hash of the URL and the version, then the name of the file."""
    name = unquote(urlparse(url).path).rpartition("/")[2] or "download"
    return f"{fingerprint(url, *map(str, version or ()))[:8]}-{name}"
