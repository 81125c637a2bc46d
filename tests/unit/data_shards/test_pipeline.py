"""Preparation keeps every event in order, and writes a complete dataset or none."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import polars as pl
import pytest
from support.datasets import (
    FrameSource,
    log_normal_lengths,
    naive_sequences,
    prepared,
    random_events,
    sequences,
)

from longplay.data_shards.errors import DataError
from longplay.data_shards.preparation import passes, pipeline
from longplay.data_shards.preparation.options import PrepareOptions
from longplay.data_shards.preparation.pipeline import prepare_dataset
from longplay.data_shards.preparation.writing import assign_users, default_num_shards
from longplay.data_shards.storage.dataset import Dataset


def folder_bytes(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def test_equal_times_keep_the_order_of_the_source(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    frame = pl.DataFrame(
        {
            "user": rng.integers(0, 30, 5000),
            "item": rng.integers(0, 999, 5000),
            "time": rng.integers(0, 4, 5000),
        }
    )
    dataset = prepared(FrameSource(frame), tmp_path / "set")
    assert sequences(dataset) == naive_sequences(list(frame.iter_rows()))


def test_items_are_numbered_by_descending_frequency_then_original_id(tmp_path: Path) -> None:
    frame = random_events(log_normal_lengths(50))
    dataset = prepared(FrameSource(frame), tmp_path / "set")
    counted = sorted(Counter(frame["item"].to_list()).items(), key=lambda pair: (-pair[1], pair[0]))
    assert list(zip(dataset.items.original_ids, dataset.items.counts, strict=True)) == counted


def test_short_users_are_dropped_and_counted(tmp_path: Path) -> None:
    frame = random_events(np.array([1, 2, 3, 4, 9]))
    dataset = prepared(FrameSource(frame), tmp_path / "set", PrepareOptions(min_user_events=4))
    assert dataset.manifest.rows_dropped == {"user_too_short": 6}
    assert sorted(dataset.user_original_ids) == [3, 4]
    with pytest.raises(
        DataError, match=r"no user has 10 of the 19 usable events .* 9\); lower --min-user-events"
    ):
        prepared(FrameSource(frame), tmp_path / "none", PrepareOptions(min_user_events=10))
    assert not (tmp_path / "none").exists()


def test_the_same_input_gives_the_same_bytes(tmp_path: Path) -> None:
    frame = random_events(log_normal_lengths(100))
    first = prepared(FrameSource(frame), tmp_path / "first")
    prepared(FrameSource(frame), tmp_path / "second")
    assert folder_bytes(tmp_path / "first") == folder_bytes(tmp_path / "second")
    other = prepared(FrameSource(frame), tmp_path / "other", PrepareOptions(seed=1))
    assert other.dataset_id != first.dataset_id
    assert sequences(other) == sequences(first)


def test_shards_are_balanced_in_users_and_events() -> None:
    lengths = log_normal_lengths(3000)
    assignment = assign_users(lengths, 24, seed=0)
    assert sorted(np.concatenate(assignment)) == list(range(3000))
    assert {len(users) for users in assignment} == {125}
    events = [lengths[users].sum() for users in assignment]
    assert max(events) - min(events) < 0.01 * np.mean(events) + lengths.max() - np.median(lengths)


@pytest.mark.parametrize(
    ("num_events", "num_users", "expected"),
    [(10, 5, 5), (1_000_000, 6040, 24), (96_000_000, 10_000, 24), (96_000_001, 10_000, 48), (10**9, 50, 48)],
)
def test_default_number_of_shards(num_events: int, num_users: int, expected: int) -> None:
    assert default_num_shards(num_events, num_users) == expected


def test_time_quantiles_are_exact(tmp_path: Path) -> None:
    frame = random_events(log_normal_lengths(100))
    quantiles = prepared(FrameSource(frame), tmp_path / "set").manifest.time_quantiles
    times = sorted(frame["time"].to_list())
    assert quantiles == [times[i * (len(times) - 1) // 1000] for i in range(1001)]


STEPS = [
    (passes, "write_runs"),
    (passes, "sort_buckets"),
    (passes, "select"),
    (pipeline, "write_shards"),
    (pipeline, "dataset_fingerprint"),
]


@pytest.mark.parametrize(("module", "step"), STEPS)
@pytest.mark.parametrize("replacing", [False, True])
def test_a_full_disk_leaves_the_output_unchanged_and_a_repeat_resumes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, module: ModuleType, step: str, replacing: bool
) -> None:
    source, out = FrameSource(random_events(np.full(30, 5))), tmp_path / "set"
    options = PrepareOptions(overwrite=True)
    if replacing:
        prepared(FrameSource(random_events(np.full(30, 6))), out)
    before = folder_bytes(out) if replacing else {}

    def fail(*_: Any, **__: Any) -> None:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patched:
        patched.setattr(module, step, fail)
        with pytest.raises(
            DataError, match=r"cannot be written \(No space left on device\); free disk space and rep"
        ):
            prepare_dataset(source, out, options)
    assert (folder_bytes(out) if out.exists() else {}) == before
    prepare_dataset(source, out, options)
    prepare_dataset(source, tmp_path / "other", options)
    assert folder_bytes(out) == folder_bytes(tmp_path / "other")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["other", "set"]


def test_an_existing_dataset_is_replaced_only_with_overwrite(tmp_path: Path) -> None:
    out = tmp_path / "set"
    first = prepared(FrameSource(random_events(np.full(30, 5))), out)
    source = FrameSource(random_events(np.full(30, 6)))
    with pytest.raises(DataError, match="already contains a dataset; pass --overwrite"):
        prepare_dataset(source, out, PrepareOptions())
    assert Dataset.open(out).dataset_id == first.dataset_id
    assert prepared(source, out, PrepareOptions(overwrite=True)).num_events == 180
    assert [path.name for path in tmp_path.iterdir()] == ["set"]


@pytest.mark.parametrize("out", [".", "..", "new/..", "/"])
def test_an_output_without_a_name_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, out: str
) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(DataError, match=r"is not the name of a new folder; choose one, such as .*dataset"):
        prepare_dataset(FrameSource(random_events(np.full(30, 5))), Path(out), PrepareOptions())
    assert not list(tmp_path.iterdir())


def test_a_folder_without_a_dataset_is_never_replaced(tmp_path: Path) -> None:
    (tmp_path / "thesis.tex").write_text("years of work")
    source = FrameSource(random_events(np.full(30, 5)))
    for overwrite in (False, True):
        with pytest.raises(DataError, match=r"is not a prepared dataset; choose another --out .*--overwrite"):
            prepare_dataset(source, tmp_path, PrepareOptions(overwrite=overwrite))
    assert (tmp_path / "thesis.tex").read_text() == "years of work"
