"""`longplay prepare` reads files from a web server."""

from __future__ import annotations

import gzip
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from support.data_server import PART, DataServer
from support.datasets import sequences

from longplay.data_shards.readers import downloads
from longplay.data_shards.storage.dataset import Dataset
from longplay.launch.cli import main


@pytest.fixture
def server(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[DataServer]:
    """A server of `plays.csv.gz`, which is too long for one answer that is cut."""
    monkeypatch.setattr(downloads, "RETRY_PAUSES_S", (0.0, 0.0, 0.0))
    folder = tmp_path / "web"
    folder.mkdir()
    rng = np.random.default_rng(0)
    users, items = rng.integers(0, 1000, 60_000), rng.integers(0, 10**9, 60_000)
    rows = "".join(f"{user},{item},{at}\n" for at, (user, item) in enumerate(zip(users, items, strict=True)))
    (folder / "plays.csv.gz").write_bytes(gzip.compress(f"user_id,item_id,timestamp\n{rows}".encode()))
    assert (folder / "plays.csv.gz").stat().st_size > 2 * PART
    server = DataServer(folder)
    yield server
    server.close()


def prepare(source: str | Path, out: Path) -> int:
    return main(["prepare", "csv", str(source), "--out", str(out)])


def test_a_url_is_read_like_the_file(server: DataServer, tmp_path: Path) -> None:
    url = f"{server.url}/plays.csv.gz"
    assert prepare(url, tmp_path / "from-url") == 0
    assert prepare(server.folder / "plays.csv.gz", tmp_path / "from-file") == 0
    found, expected = (Dataset.open(tmp_path / name) for name in ("from-url", "from-file"))
    assert found.dataset_id == expected.dataset_id
    assert sequences(found) == sequences(expected)
    assert found.manifest.source["paths"] == [url]
    assert sorted(path.name for path in tmp_path.iterdir()) == ["from-file", "from-url", "web"]


def test_a_broken_transfer_continues(server: DataServer, tmp_path: Path) -> None:
    server.faults["plays.csv.gz"] = ["truncate", "busy"]
    assert prepare(f"{server.url}/plays.csv.gz", tmp_path / "set") == 0
    assert [text for text in server.ranges["plays.csv.gz"] if text] == [f"bytes={PART}-"] * 2


def test_a_later_command_continues_the_transfer(
    server: DataServer, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    url, out = f"{server.url}/plays.csv.gz", tmp_path / "set"
    server.faults["plays.csv.gz"] = ["truncate", *["drop"] * 4]
    assert prepare(url, out) == 2
    assert "repeat the command, which continues the transfer" in capsys.readouterr().err
    server.ranges.clear()
    assert prepare(url, out) == 0
    assert server.ranges["plays.csv.gz"][-1] == f"bytes={PART}-"
    assert not (tmp_path / "set.downloads").exists()


def test_another_version_of_the_file_is_not_mixed_with_the_first(server: DataServer, tmp_path: Path) -> None:
    url, out = f"{server.url}/plays.csv.gz", tmp_path / "set"
    server.faults["plays.csv.gz"] = ["truncate", *["drop"] * 4]
    assert prepare(url, out) == 2
    (server.folder / "plays.csv.gz").write_bytes(gzip.compress(b"user_id,item_id,timestamp\n1,2,3\n1,4,5\n"))
    assert prepare(url, out) == 0
    assert sequences(Dataset.open(out)) == {1: [(2, 3), (4, 5)]}


def test_a_missing_file_and_another_scheme_are_refused_in_one_line(
    server: DataServer, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for url, message in (
        (f"{server.url}/absent.csv", "404"),
        ("s3://bucket/plays.csv", "copy the file to this machine first"),
    ):
        assert prepare(url, tmp_path / "set") == 2
        error = capsys.readouterr().err
        assert message in error
        assert url in error
        assert error.count("\n") == 1


def test_files_of_the_user_beside_the_copies_are_kept(server: DataServer, tmp_path: Path) -> None:
    (tmp_path / "set.downloads").mkdir()
    (tmp_path / "set.downloads" / "mine").write_text("mine")
    assert prepare(f"{server.url}/plays.csv.gz", tmp_path / "set") == 0
    assert [path.name for path in (tmp_path / "set.downloads").iterdir()] == ["mine"]
