"""Shards are small, equal input gives equal bytes, and WebDataset reads them without Longplay."""

from __future__ import annotations

import hashlib
import io
import pickle
import tarfile
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from support.datasets import log_normal_lengths, make_dataset
from webdataset.compat import WebDataset

from longplay.data_shards.errors import DataError
from longplay.data_shards.storage import shard_writer
from longplay.data_shards.storage.manifest import ShardInfo
from longplay.data_shards.storage.shard_reader import read_blocks
from longplay.data_shards.storage.shard_writer import BLOCK_EVENTS, write_shard

# WebDataset does not close its files; they are closed when they are garbage-collected.
UNCLOSED = "ignore:Exception ignored in. <_io:pytest.PytestUnraisableExceptionWarning"
INT64 = st.integers(-(2**63), 2**63 - 1)


def write(path: Path, lengths: np.ndarray, first_user: int = 0, *, time_range: int = 2**31) -> ShardInfo:
    rng = np.random.default_rng(0)
    items = rng.integers(1, 2**31, lengths.sum(), dtype=np.int32)
    return write_shard(path, first_user, lengths, items, rng.integers(0, time_range, lengths.sum()))


@pytest.mark.filterwarnings(UNCLOSED)
def test_webdataset_reads_the_shards_of_a_dataset(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shard_writer, "BLOCK_EVENTS", 100)
    dataset = make_dataset(tmp_path / "set", log_normal_lengths(300))
    opened: Any = WebDataset(str(tmp_path / "set" / "shard-{000000..000023}.tar"), shardshuffle=False)
    user = num_blocks = 0
    for block in opened.decode():
        about = block["json"]
        assert (block["__key__"], about["first_user"]) == (f"{user:010d}", user)
        assert (about["schema_version"], block["lengths.npy"].dtype) == (2, np.int32)
        ends = np.cumsum(block["lengths.npy"])[:-1]
        times = block["times.npy"].astype(np.int64) + about["time_base"]
        for each in zip(np.split(block["items.npy"], ends), np.split(times, ends), strict=True):
            for found, expected in zip(each, dataset.sequence(user), strict=True):
                assert np.array_equal(found, expected)
            user += 1
        num_blocks += 1
    assert user == dataset.num_users
    assert num_blocks > 2 * dataset.num_shards


def test_equal_input_gives_equal_bytes_and_the_entry_matches_the_file(tmp_path: Path) -> None:
    lengths = log_normal_lengths(500)
    info = write(tmp_path / "shard-000000.tar", lengths, first_user=7)
    content = (tmp_path / "shard-000000.tar").read_bytes()
    with mock.patch("time.time", return_value=2e9):
        write(tmp_path / "other.tar", lengths, first_user=7)
    assert content == (tmp_path / "other.tar").read_bytes()
    assert info == ShardInfo(
        name="shard-000000.tar",
        num_users=500,
        num_events=int(lengths.sum()),
        num_bytes=len(content),
        sha256=hashlib.sha256(content).hexdigest(),
    )


def test_a_block_ends_with_the_user_that_reaches_its_size(tmp_path: Path) -> None:
    lengths = np.array([BLOCK_EVENTS - 1, 1, 5, 3 * BLOCK_EVENTS, 2, *[1000] * 200])
    write(tmp_path / "a.tar", lengths)
    content = np.fromfile(tmp_path / "a.tar", np.uint8)
    blocks = [block["lengths.npy"] for block in read_blocks(content, with_times=False)]
    assert np.array_equal(np.concatenate(blocks), lengths)
    assert [len(block) for block in blocks[:2]] == [2, 2]
    sizes = [int(block.sum()) for block in blocks[2:-1]]
    assert all(BLOCK_EVENTS - 1000 <= size <= BLOCK_EVENTS + 1000 for size in sizes), sizes


@settings(deadline=None, max_examples=40)
@given(times=st.lists(st.one_of(INT64, st.integers(2**40, 2**40 + 2**32)), min_size=1, max_size=5))
def test_times_are_exact(tmp_path_factory: pytest.TempPathFactory, times: list[int]) -> None:
    path = tmp_path_factory.mktemp("shard") / "a.tar"
    write_shard(path, 0, np.array([len(times)]), np.ones(len(times), np.int32), np.array(times, np.int64))
    (block,) = read_blocks(np.fromfile(path, np.uint8), with_times=True)
    assert [int(offset) + block["json"]["time_base"] for offset in block["times.npy"]] == times
    assert block["times.npy"].dtype == (np.uint32 if max(times) - min(times) < 2**32 else np.int64)


@pytest.mark.parametrize(
    ("median", "sigma", "limit"), [(9_044 * np.exp(-0.5), 1.0, 14), (8.9 * np.exp(-0.125), 0.5, 16)]
)
@pytest.mark.parametrize("time_range", [2**31, 2**60])
def test_an_event_takes_few_bytes(
    tmp_path: Path, median: float, sigma: float, limit: int, time_range: int
) -> None:
    draws = np.random.default_rng(0).lognormal(np.log(median), sigma, int(2_000_000 / median))
    info = write(tmp_path / "a.tar", np.maximum(2, draws.astype(np.int64)), time_range=time_range)
    assert info.num_bytes / info.num_events < (limit if time_range > 2**32 else limit - 4)


def test_a_history_too_long_for_a_shard_is_refused(tmp_path: Path) -> None:
    events = np.broadcast_to(np.ones(1, np.int32), 2_200_000_000)  # takes 4 bytes
    with pytest.raises(DataError, match=r"a user has 2200000000 events, more than .*; limit histories with"):
        write_shard(tmp_path / "a.tar", 0, np.array([2_200_000_000]), events, events)


def test_an_interrupted_shard_leaves_nothing_behind(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="invalid literal"):
        write_shard(tmp_path / "a.tar", 0, np.array([1]), np.array(["x"]), np.array([1]))
    assert list(tmp_path.iterdir()) == []


class Trap:
    """A value whose pickle runs code when it is loaded."""

    def __reduce__(self) -> tuple[Any, ...]:
        return pytest.fail, ("a member was decoded by pickle",)


@pytest.mark.parametrize("name", ["trap.pyd", "trap.pickle", "x.items.npy.pyd"])
def test_members_of_other_names_are_not_decoded(tmp_path: Path, name: str) -> None:
    write(tmp_path / "shard.tar", np.array([3]))
    content = pickle.dumps(Trap())
    with tarfile.open(tmp_path / "shard.tar", "a") as tar:
        member = tarfile.TarInfo(f"0000000000.{name}")
        member.size = len(content)
        tar.addfile(member, io.BytesIO(content))
    bytes_read = np.fromfile(tmp_path / "shard.tar", np.uint8)
    (block,) = read_blocks(bytes_read, with_times=True)
    assert {key for key in block if not key.startswith("__")} == {
        "items.npy",
        "lengths.npy",
        "times.npy",
        "json",
    }
