"""Datasets at URLs give the same stream as in a folder; errors name the shard."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch
from support.data_server import PART, DataServer
from support.datasets import log_normal_lengths, make_dataset, sequences

from longplay.data_shards.errors import DataError
from longplay.data_shards.storage import http_file, locations
from longplay.data_shards.storage.dataset import Dataset
from longplay.data_shards.storage.locations import absolute, in_folder, parse_location, read_whole
from longplay.data_shards.stream.config import StreamConfig
from longplay.data_shards.stream.train_stream import Batch, TrainStream

CONFIG = StreamConfig(context_length=16, rows_per_step=36, pool_rows=10)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("data") / "set"
    make_dataset(out, log_normal_lengths(120))
    return out


@pytest.fixture(scope="module")
def large_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    file = tmp_path_factory.mktemp("large") / "file"
    file.write_bytes(bytes(range(256)) * (6 * PART // 256))
    return file


@pytest.fixture
def server(folder: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[DataServer]:
    monkeypatch.setattr(locations, "RETRY_PAUSES_S", (0.0, 0.0))
    monkeypatch.setattr(http_file, "READ_TIMEOUT_S", 0.2)
    server = DataServer(folder)
    yield server
    server.close()


def epoch(dataset: Dataset) -> list[Batch]:
    stream = TrainStream(dataset, CONFIG)
    return list(itertools.islice(stream, stream.steps_per_epoch(0)))


def test_a_dataset_over_http_equals_the_one_in_the_folder(folder: Path, server: DataServer) -> None:
    local, remote = Dataset.open(folder), Dataset.open(f"{server.url}/")
    assert remote.path == server.url
    assert sequences(remote) == sequences(local)
    for left, right in zip(epoch(local), epoch(remote), strict=True):
        for name in ("item_ids", "targets", "seq_idx", "row_lanes", "row_numbers"):
            assert torch.equal(getattr(left, name), getattr(right, name)), name


@pytest.mark.parametrize("prefix", ["file://{}", "file:{}", "pipe:cat {}"])
def test_other_schemes_of_gopen_are_read(folder: Path, prefix: str) -> None:
    dataset = Dataset.open(prefix.format(folder))
    assert sequences(dataset) == sequences(Dataset.open(folder))
    dataset.verify()


@pytest.mark.parametrize("fault", ["drop", "truncate", "stall", "silent", "busy", "cut", "flip"])
def test_a_read_that_fails_once_is_retried(server: DataServer, fault: str) -> None:
    server.faults["shard-000003.tar"] = [fault]
    Dataset.open(server.url).verify()
    assert server.requests["shard-000003.tar"] == 2


@pytest.mark.parametrize(
    ("fault", "cause"),
    [
        ("drop", r"cannot be read \(Remote end closed connection without response"),
        ("truncate", r"cannot be read \(the transfer was broken off"),
        ("stall", r"cannot be read \(the server sent nothing for 0\.2 s"),
        ("silent", r"cannot be read \(the server sent nothing for 0\.2 s"),
        ("busy", r"cannot be read \(the server answered 503 Service Unavailable"),
        ("cut", r"is damaged \(has \d+ bytes, expected \d+"),
        ("flip", r"is damaged \(its content does not match its checksum"),
    ],
)
def test_a_read_that_keeps_failing_raises_with_the_url(server: DataServer, fault: str, cause: str) -> None:
    server.faults["shard-000003.tar"] = [fault] * 9
    with pytest.raises(DataError, match=rf"{server.url}/shard-000003\.tar: shard {cause}; tried 3 times\)"):
        Dataset.open(server.url).shard(3)
    assert server.requests["shard-000003.tar"] == 3


def test_a_missing_shard_or_dataset_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    make_dataset(tmp_path / "set", log_normal_lengths(60))
    (tmp_path / "set" / "shard-000002.tar").unlink()
    monkeypatch.setattr(locations, "RETRY_PAUSES_S", (0.0, 0.0))
    server = DataServer(tmp_path / "set")
    with pytest.raises(DataError, match=r"shard-000002\.tar: shard cannot be read \(the server answered 404"):
        epoch(Dataset.open(server.url))
    skipping = Dataset.open(server.url, on_bad_shard="skip")
    with pytest.warns(UserWarning, match=r"shard-000002\.tar: shard cannot be read .* skipped its"):
        assert len(epoch(skipping)) == TrainStream(skipping, CONFIG).steps_per_epoch(0)
    with pytest.raises(
        DataError, match=r"elsewhere/manifest\.json: cannot be read .*--data takes the folder"
    ):
        Dataset.open(f"{server.url}/elsewhere")
    server.close()


@pytest.mark.parametrize("fault", ["silent", "stall"])
@pytest.mark.parametrize("name", ["manifest.json", "users.parquet"])
def test_a_server_that_stops_sending_is_given_up(server: DataServer, fault: str, name: str) -> None:
    server.faults[name] = [fault] * 9
    with pytest.raises(
        DataError, match=rf"{name}: cannot be read \(the server sent nothing for 0\.2 s; tried 3"
    ):
        Dataset.open(server.url)


def test_a_broken_transfer_continues_where_it_stopped(server: DataServer, large_file: Path) -> None:
    server.folder = large_file.parent
    server.faults["file"] = ["stall", "truncate", "stall", "truncate"]  # more than the allowed failures
    assert read_whole(f"{server.url}/file").tobytes() == large_file.read_bytes()
    assert server.ranges["file"] == [None, *(f"bytes={number * PART}-" for number in (1, 2, 3, 4))]


def test_a_server_without_ranges_sends_the_whole_file_again(server: DataServer, large_file: Path) -> None:
    server.folder, server.knows_ranges = large_file.parent, False
    server.faults["file"] = ["stall"]
    assert read_whole(f"{server.url}/file").tobytes() == large_file.read_bytes()
    assert server.requests["file"] == 2


def test_a_file_that_changes_during_a_transfer_is_read_again(server: DataServer, large_file: Path) -> None:
    server.folder = large_file.parent
    server.faults["file"] = ["truncate", "changed", "changed"]
    assert read_whole(f"{server.url}/file").tobytes() == large_file.read_bytes()
    assert server.ranges["file"] == [None, f"bytes={PART}-", None]


def test_a_missing_program_is_named(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(DataError, match="needs gsutil, which is not installed; install it"):
        Dataset.open("gs://bucket/set")


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
