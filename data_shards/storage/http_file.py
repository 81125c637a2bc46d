"""Read a file from a web server; a broken transfer continues at the byte where it stopped."""

from __future__ import annotations

import time
from collections.abc import Iterator

import requests
from urllib3.exceptions import HTTPError, ReadTimeoutError

from longplay.data_shards.errors import PermanentError

CONNECT_TIMEOUT_S = 10.0
READ_TIMEOUT_S = 30.0
_MIN_PROGRESS_BYTES = 64 << 10  # a transfer that brings fewer in READ_TIMEOUT_S has stalled
_BLOCK_BYTES = 1 << 20
_TEMPORARY = {408, 425, 429, 500, 502, 503, 504}


class HttpFile:
    """A file at an `http:` or `https:` URL. Proxies and certificates come from requests' usual variables."""

    resumable = True

    def __init__(self, url: str) -> None:
        self._url = url
        self._version: tuple[str | None, ...] | None = None

    @property
    def version(self) -> tuple[str | None, ...] | None:
        """ETag, Last-Modified and size; None before the first answer, or without the first two."""
        return self._version if self._version and any(self._version[:2]) else None

    def blocks(self, start: int) -> Iterator[bytes]:
        """Yield the content from byte `start` on. Every wait for the server has a limit.

        Raises:
            PermanentError: the URL is invalid, or the server answers that it does not have the file.
            OSError: the transfer is broken off or has stalled.
            ValueError: the transfer cannot continue, because the file has changed since the first call.
        """
        headers = {"Accept-Encoding": "identity", **({"Range": f"bytes={start}-"} if start else {})}
        timeouts = (CONNECT_TIMEOUT_S, READ_TIMEOUT_S)
        try:
            with requests.get(self._url, headers=headers, stream=True, timeout=timeouts) as response:
                yield from _after(_content(response), self._surplus(response, start))
        except (requests.RequestException, HTTPError) as error:
            kind = PermanentError if isinstance(error, ValueError) else OSError  # ValueError: invalid URL
            raise kind(_cause(error)) from error

    def _surplus(self, response: requests.Response, start: int) -> int:
        """Check the answer and return the number of bytes that it holds before byte `start`."""
        status = response.status_code
        if status == 416:
            raise ValueError("the server has no bytes after those that it sent")
        if status not in (200, 206):
            kind = OSError if status in _TEMPORARY else PermanentError
            raise kind(f"the server answered {status} {response.reason or ''}".rstrip())
        begin, end, total = 0, None, response.headers.get("Content-Length")
        if status == 206:
            begin, end, total = _content_range(response.headers.get("Content-Range", ""))
        version = response.headers.get("ETag"), response.headers.get("Last-Modified"), total
        if self._version is None or not start:
            self._version = version
        if version != self._version or (end is not None and begin != start):
            raise ValueError("it has changed during the transfer")
        return start - begin  # a server without ranges sends the whole file


def _content(response: requests.Response) -> Iterator[bytes]:
    since, received = time.monotonic(), 0
    while block := response.raw.read1(_BLOCK_BYTES):
        yield block
        received += len(block)
        if time.monotonic() - since > READ_TIMEOUT_S:
            if received < _MIN_PROGRESS_BYTES:
                raise OSError(f"the server sent only {received} bytes in {READ_TIMEOUT_S:g} s")
            since, received = time.monotonic(), 0


def _after(blocks: Iterator[bytes], skipped: int) -> Iterator[bytes]:
    """Yield the blocks without their first `skipped` bytes."""
    for block in blocks:
        if skipped < len(block):
            yield block[skipped:]
        skipped = max(0, skipped - len(block))


def _content_range(text: str) -> tuple[int, int, str]:
    """Return the first byte, the last byte and the total size of `bytes 100-199/5000`."""
    try:
        span, _, total = text.removeprefix("bytes ").partition("/")
        first, _, last = span.partition("-")
        return int(first), int(last), total
    except ValueError:
        raise OSError(f"the server answered with the range {text!r}") from None


def _cause(error: Exception) -> str:
    """Describe an error of the transfer without the classes and addresses of the libraries."""
    if isinstance(error, requests.ConnectTimeout):
        return f"no connection within {CONNECT_TIMEOUT_S:g} s"
    if isinstance(error, requests.ReadTimeout | ReadTimeoutError):
        return f"the server sent nothing for {READ_TIMEOUT_S:g} s"
    root: BaseException = error
    while (inner := root.__cause__ or root.__context__) is not None:
        root = inner
    if isinstance(root, OSError) and root.strerror:
        return root.strerror
    if isinstance(error, HTTPError):
        return "the transfer was broken off"
    return str(root).rstrip(".") or type(root).__name__
