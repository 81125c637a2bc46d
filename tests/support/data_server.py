"""A web server for a dataset that fails on request."""

from __future__ import annotations

import contextlib
import sys
import threading
from collections import Counter
from functools import partial
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

PART = 100_000
"""Bytes that the faults "truncate" and "stall" send, at most."""


class DataServer:
    """Serves a folder on loopback, from a thread.

    Attributes:
        faults: `faults[name]` lists the faults of the next requests for a file; see `_Handler`.
        requests: number of requests for each file.
        ranges: the `Range` headers of the requests for each file.
        knows_ranges: whether the server answers them; otherwise it sends whole files.
        silent_after: number of shards after which it sends nothing and keeps the connections.
    """

    def __init__(self, folder: Path, port: int = 0) -> None:
        self.folder, self.knows_ranges = folder, True
        self.faults: dict[str, list[str]] = {}
        self.requests: Counter[str] = Counter()
        self.ranges: dict[str, list[str | None]] = {}
        self.silent_after = sys.maxsize
        self.closed = threading.Event()
        self.http = ThreadingHTTPServer(("127.0.0.1", port), partial(_Handler, self))
        self.port = self.http.server_address[1]
        self.url = f"http://127.0.0.1:{self.port}"
        threading.Thread(target=self.http.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True).start()

    @property
    def num_shards_read(self) -> int:
        return sum(count for name, count in list(self.requests.items()) if name.endswith(".tar"))

    @property
    def is_silent(self) -> bool:
        """Whether a request for a shard waits for an answer that does not come."""
        return self.num_shards_read > self.silent_after

    def close(self) -> None:
        """End the server and the requests that it has not answered."""
        self.closed.set()
        self.http.shutdown()
        self.http.server_close()


class _Handler(BaseHTTPRequestHandler):
    """Answers a request, or has the next fault of its file.

    The faults: "drop" sends nothing, "silent" sends nothing and keeps the connection, "truncate" ends the
    connection in the middle, "stall" keeps it there, "cut" sends a shorter file, "flip" another bit, "busy"
    answers with status 503, and "changed" has another ETag.
    """

    def __init__(self, owner: DataServer, *args: object) -> None:
        self.owner = owner
        super().__init__(*args)  # pyright: ignore[reportArgumentType] -- the server's arguments

    def do_GET(self) -> None:
        with contextlib.suppress(ConnectionError):  # the client has given up
            self._answer()

    def _answer(self) -> None:
        owner, name = self.owner, self.path.rpartition("/")[2]
        owner.requests[name] += 1
        owner.ranges.setdefault(name, []).append(self.headers["Range"])
        faults = owner.faults.get(name, [])
        fault = faults.pop(0) if faults else ""
        file = owner.folder / self.path.lstrip("/")
        if fault == "drop":
            return
        if fault == "silent" or (owner.is_silent and name.endswith(".tar")):
            owner.closed.wait()
            return
        if fault == "busy" or not file.is_file():
            self.send_error(503 if fault else 404)
            return
        content = bytearray(file.read_bytes())
        if fault == "cut":
            del content[-512:]
        if fault == "flip":
            content[600] ^= 1
        sent = self._send_headers(content, "other" if fault == "changed" else "same")
        if fault in ("truncate", "stall"):
            sent = sent[: min(PART, len(sent) // 2)]
        self.wfile.write(sent)
        if fault == "stall":
            self.wfile.flush()
            owner.closed.wait()

    def _send_headers(self, content: bytearray, version: str) -> bytearray:
        """Send the status and the headers; return the content to send."""
        wanted = (self.headers["Range"] or "") if self.owner.knows_ranges else ""
        begin = int(wanted.removeprefix("bytes=").rstrip("-") or 0)
        self.send_response(206 if wanted else 200)
        if wanted:
            self.send_header("Content-Range", f"bytes {begin}-{len(content) - 1}/{len(content)}")
        self.send_header("Content-Length", str(len(content) - begin))
        self.send_header("ETag", f'"{version}"')
        self.end_headers()
        return content[begin:]

    def log_message(self, format: str, *args: object) -> None:
        pass
