"""Datasets at URLs give the same stream as in a folder; errors name the shard."""

from __future__ import annotations

import itertools
import threading
from collections import Counter
from collections.abc import Callable, Iterator
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
import torch
from support.datasets import log_normal_lengths, make_dataset, sequences

from longplay.data_shards.errors import DataError
from longplay.data_shards.storage import locations
from longplay.data_shards.storage.dataset import Dataset
from longplay.data_shards.storage.locations import absolute, in_folder, parse_location
from longplay.data_shards.stream.config import StreamConfig
from longplay.data_shards.stream.train_stream import Batch, TrainStream

CONFIG = StreamConfig(context_length=16, rows_per_step=36, pool_rows=10)


class Server:
    """Serves a folder on loopback. `faults[name]` lists the faults of the next requests for a file."""

    def __init__(self, folder: Path) -> None:
        self.faults: dict[str, list[str]] = {}
        self.requests: Counter[str] = Counter()
        handler = partial(_Handler, owner=self, directory=str(folder))
        self.http = ThreadingHTTPServer(("127.0.0.1", 0), handler)
        self.url = f"http://127.0.0.1:{self.http.server_address[1]}"
        threading.Thread(target=self.http.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True).start()

    def close(self) -> None:
        self.http.shutdown()
        self.http.server_close()


class _Handler(SimpleHTTPRequestHandler):
    def __init__(self, *args, owner: Server, **kwargs) -> None:
        self.owner = owner
        super().__init__(*args, **kwargs)

    def do_GET(self) -> None:
        name = self.path.rpartition("/")[2]
        self.owner.requests[name] += 1
        faults = self.owner.faults.get(name, [])
        fault = faults.pop(0) if faults else ""
        if fault == "drop":
            self.close_connection = True
        elif fault in ("truncate", "cut", "flip"):
            content = bytearray((Path(self.directory) / name).read_bytes())
            self.send_response(200)
            if fault == "truncate":  # fewer bytes than Content-Length
                self.send_header("Content-Length", str(len(content)))
                content = content[:1000]
            elif fault == "cut":  # a shorter file
                content = content[:-512]
                self.send_header("Content-Length", str(len(content)))
            else:
                content[600] ^= 1
                self.send_header("Content-Length", str(len(content)))
            self.end_headers()
            self.wfile.write(content)
        else:
            super().do_GET()

    def log_message(self, format: str, *args: object) -> None:
        pass


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("data") / "set"
    make_dataset(out, log_normal_lengths(120))
    return out


@pytest.fixture
def server(folder: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Server]:
    monkeypatch.setattr(locations, "RETRY_PAUSES_S", (0.0, 0.0))
    server = Server(folder)
    yield server
    server.close()


def epoch(dataset: Dataset) -> list[Batch]:
    stream = TrainStream(dataset, CONFIG)
    return list(itertools.islice(stream, stream.steps_per_epoch(0)))


def test_a_dataset_over_http_equals_the_one_in_the_folder(folder: Path, server: Server) -> None:
    local, remote = Dataset.open(folder), Dataset.open(f"{server.url}/")
    assert remote.path == server.url
    assert sequences(remote) == sequences(local)
    for left, right in zip(epoch(local), epoch(remote), strict=True):
        assert all(torch.equal(t, right.tensors()[name]) for name, t in left.tensors().items())


@pytest.mark.parametrize("prefix", ["file://{}", "file:{}", "pipe:cat {}"])
def test_other_schemes_of_gopen_are_read(folder: Path, prefix: str) -> None:
    dataset = Dataset.open(prefix.format(folder))
    assert sequences(dataset) == sequences(Dataset.open(folder))
    dataset.verify()


@pytest.mark.parametrize("fault", ["drop", "truncate", "cut", "flip"])
def test_a_read_that_fails_once_is_retried(server: Server, fault: str) -> None:
    server.faults["shard-000003.tar"] = [fault]
    Dataset.open(server.url).verify()
    assert server.requests["shard-000003.tar"] == 2


@pytest.mark.parametrize(
    ("fault", "cause"),
    [
        ("drop", r"cannot be read \(curl exited with status 52: the server sent an empty reply"),
        ("truncate", r"cannot be read \(curl exited with status 18: the transfer was cut off"),
        ("cut", r"is damaged \(has \d+ bytes, expected \d+"),
        ("flip", r"is damaged \(its content does not match its checksum"),
    ],
)
def test_a_read_that_keeps_failing_raises_with_the_url(server: Server, fault: str, cause: str) -> None:
    server.faults["shard-000003.tar"] = [fault] * 9
    with pytest.raises(DataError, match=rf"{server.url}/shard-000003\.tar: shard {cause}; tried 3 times\)"):
        Dataset.open(server.url).shard(3)
    assert server.requests["shard-000003.tar"] == 3


def test_a_missing_shard_or_dataset_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    make_dataset(tmp_path / "set", log_normal_lengths(60))
    (tmp_path / "set" / "shard-000002.tar").unlink()
    monkeypatch.setattr(locations, "RETRY_PAUSES_S", (0.0, 0.0))
    server = Server(tmp_path / "set")
    with pytest.raises(
        DataError, match=r"shard-000002\.tar: shard cannot be read \(curl exited with status 22: .*404"
    ):
        epoch(Dataset.open(server.url))
    skipping = Dataset.open(server.url, on_bad_shard="skip")
    with pytest.warns(UserWarning, match=r"shard-000002\.tar: shard cannot be read .* skipped its"):
        assert len(epoch(skipping)) == TrainStream(skipping, CONFIG).steps_per_epoch(0)
    with pytest.raises(
        DataError, match=r"elsewhere/manifest\.json: cannot be read .*--data takes the folder"
    ):
        Dataset.open(f"{server.url}/elsewhere")
    server.close()


def test_a_missing_program_is_named(server: Server, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(DataError, match="needs curl, which is not installed; install it"):
        Dataset.open(server.url)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("data/set", Path("data/set")),
        ("a:b/set", Path("a:b/set")),
        ("file:///data/a%20b", Path("/data/a b")),
        ("https://host/set/", "https://host/set"),
        ("pipe:cat /data", "pipe:cat /data"),
    ],
)
def test_urls_and_folders_are_distinguished(text: str, expected: Path | str) -> None:
    assert parse_location(text) == expected


def test_locations_are_joined_and_made_absolute(tmp_path: Path) -> None:
    joined: Callable = in_folder
    assert (joined(tmp_path, "x"), joined("http://host/set", "x")) == (tmp_path / "x", "http://host/set/x")
    assert absolute("http://host/set") == "http://host/set"
    with pytest.raises(DataError, match="s3://bucket/set: unsupported scheme; use one of ais, file"):
        parse_location("s3://bucket/set")
