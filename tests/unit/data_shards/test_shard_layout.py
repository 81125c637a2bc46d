"""The bytes of a shard equal those of tarfile and numpy.lib.format, at the offsets of `array_offsets`."""

from __future__ import annotations

import hashlib
import io
import tarfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from webdataset.compat import WebDataset

from longplay.data_shards.storage import shard_layout
from longplay.data_shards.storage.shard_layout import ShardWriter, array_offsets, end_of_archive, sample_bytes

EDGES = [1, 31, 32, 33, 95, 96, 97, 160, 1_000, 4_096]
"""Lengths at which the last block of an array is full or nearly full."""


def random_arrays(lengths: list[int], seed: int = 0) -> list[tuple[np.ndarray, np.ndarray]]:
    rng = np.random.default_rng(seed)
    return [
        (rng.integers(1, 2**31, n, dtype=np.int32), rng.integers(-(2**62), 2**62, n, dtype=np.int64))
        for n in lengths
    ]


def by_tarfile(arrays: list[tuple[np.ndarray, np.ndarray]], first_user: int) -> bytes:
    """Write the same shard with the standard library and NumPy."""
    archive = io.BytesIO()
    with tarfile.open(fileobj=archive, mode="w", format=tarfile.USTAR_FORMAT) as tar:
        for user_index, pair in enumerate(arrays, first_user):
            for name, values in zip(("items", "times"), pair, strict=True):
                content = io.BytesIO()
                np.lib.format.write_array(content, values, version=(1, 0), allow_pickle=False)
                info = tarfile.TarInfo(f"{user_index:010d}.{name}.npy")
                info.size = content.tell()
                content.seek(0)
                tar.addfile(info, content)
    return archive.getvalue()


def write(path: Path, arrays: list[tuple[np.ndarray, np.ndarray]], first_user: int = 0):
    with ShardWriter(path) as shard:
        for user_index, (items, times) in enumerate(arrays, first_user):
            shard.add(user_index, items, times)
        return shard.close()


@settings(deadline=None, max_examples=30)
@given(
    lengths=st.lists(st.one_of(st.integers(1, 300), st.sampled_from(EDGES)), max_size=12),
    first_user=st.integers(0, 10**10 - 20),
)
def test_a_shard_equals_the_archive_of_tarfile_and_numpy(lengths: list[int], first_user: int) -> None:
    arrays = random_arrays(lengths)
    pieces = [p for n, pair in enumerate(arrays, first_user) for p in sample_bytes(n, *pair)]
    members = b"".join(pieces)
    shard = members + end_of_archive(len(members))
    assert shard == by_tarfile(arrays, first_user)
    items_at, times_at, num_bytes = array_offsets(np.array(lengths, np.int64))
    assert num_bytes == len(shard)
    for (items, times), item_at, time_at in zip(arrays, items_at, times_at, strict=True):
        assert np.array_equal(np.frombuffer(shard, "<i4", len(items), item_at), items)
        assert np.array_equal(np.frombuffer(shard, "<i8", len(times), time_at), times)


@pytest.mark.parametrize("length", [9, 10, 999_999, 10_000_000])
def test_headers_of_long_arrays_equal_those_of_numpy_and_tarfile(length: int) -> None:
    items, times = np.zeros(length, np.int32), np.zeros(length, np.int64)
    members = b"".join(sample_bytes(9_876_543_210, items, times))
    assert members + end_of_archive(len(members)) == by_tarfile([(items, times)], 9_876_543_210)


def test_a_history_too_long_for_a_shard_is_refused() -> None:
    long_history = np.broadcast_to(np.zeros(1, np.int32), 2_200_000_000)  # takes 4 bytes
    with pytest.raises(ValueError, match=r"2200000000 events of one user exceed .*; limit histories with"):
        sample_bytes(0, long_history, long_history)


# WebDataset does not close its files; they are closed when they are garbage-collected.
@pytest.mark.filterwarnings("ignore:Exception ignored in. <_io:pytest.PytestUnraisableExceptionWarning")
def test_shard_info_matches_the_file_and_webdataset_reads_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(shard_layout, "FLUSH_BYTES", 10_000)
    arrays = random_arrays(EDGES)
    info = write(tmp_path / "shard-00000.tar", arrays, first_user=7)
    content = (tmp_path / "shard-00000.tar").read_bytes()
    assert content == by_tarfile(arrays, 7)
    assert (info.name, info.num_bytes) == ("shard-00000.tar", len(content))
    assert (info.num_samples, info.num_events) == (len(arrays), sum(EDGES))
    assert info.sha256 == hashlib.sha256(content).hexdigest()
    assert [path.name for path in tmp_path.iterdir()] == ["shard-00000.tar"]
    opened: Any = WebDataset(str(tmp_path / info.name), shardshuffle=False)
    read = list(opened.decode())
    assert [sample["__key__"] for sample in read] == [f"{n:010d}" for n in range(7, 7 + len(arrays))]
    for sample, (items, times) in zip(read, arrays, strict=True):
        assert np.array_equal(sample["items.npy"], items)
        assert np.array_equal(sample["times.npy"], times)


def test_arrays_of_other_types_are_converted(tmp_path: Path) -> None:
    ((items, times),) = random_arrays([50])
    info = write(tmp_path / "a.tar", [(items, times)])
    strided = np.stack([items.astype(np.int64), times], 1)
    assert write(tmp_path / "b.tar", [(strided[:, 0], strided[:, 1])]).sha256 == info.sha256


def test_an_interrupted_shard_leaves_nothing_behind(tmp_path: Path) -> None:
    with (
        pytest.raises(ValueError, match="invalid literal"),
        ShardWriter(tmp_path / "shard-00000.tar") as shard,
    ):
        shard.add(0, np.array(["x"]), np.array([1]))
    assert list(tmp_path.iterdir()) == []
