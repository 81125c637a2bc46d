"""Datasets are checked when they are opened and read; splits and id mappings are exact."""

from __future__ import annotations

import hashlib
import json
import shutil
from pathlib import Path
from typing import Literal

import numpy as np
import polars as pl
import pytest
from support.datasets import FrameSource, edit_manifest, log_normal_lengths, make_dataset, random_events

from longplay.data_shards.errors import DataError
from longplay.data_shards.preparation.options import PrepareOptions
from longplay.data_shards.preparation.pipeline import prepare_dataset
from longplay.data_shards.storage.dataset import Dataset
from longplay.data_shards.storage.manifest import MANIFEST_NAME
from longplay.data_shards.stream.config import SplitConfig, StreamConfig
from longplay.data_shards.stream.splits import cutoffs, split_bounds, train_item_counts
from longplay.data_shards.stream.train_stream import TrainStream

Kind = Literal["leave_one_out", "temporal"]


@pytest.fixture(scope="module")
def intact(tmp_path_factory: pytest.TempPathFactory) -> Dataset:
    return make_dataset(tmp_path_factory.mktemp("data") / "set", log_normal_lengths(120))


@pytest.fixture
def folder(intact: Dataset, tmp_path: Path) -> Path:
    """Return a copy of the dataset to damage."""
    return Path(shutil.copytree(intact.path, tmp_path / "set"))


def overwrite(path: Path, at: int, content: bytes) -> None:
    with path.open("r+b") as file:
        file.seek(at)
        file.write(content)


def test_verify_accepts_an_intact_dataset(intact: Dataset) -> None:
    intact.verify()


def test_a_missing_shard_is_named(folder: Path) -> None:
    (folder / "shard-000003.tar").unlink()
    with pytest.raises(DataError, match=r"shard-000003\.tar: shard is missing; restore the file or prepare"):
        Dataset.open(folder)


def test_a_truncated_shard_is_named(folder: Path) -> None:
    path = folder / "shard-000003.tar"
    path.write_bytes(path.read_bytes()[:-1000])
    with pytest.raises(DataError, match=r"shard-000003\.tar: shard has \d+ bytes, expected \d+"):
        Dataset.open(folder)


def test_verify_finds_changed_bytes(folder: Path) -> None:
    overwrite(folder / "shard-000005.tar", 512 + 128, b"\x07\x00\x00\x00")
    dataset = Dataset.open(folder)
    with pytest.raises(
        DataError, match=r"shard-000005\.tar: shard is damaged \(its content does not match its checksum\)"
    ):
        dataset.verify()


@pytest.mark.parametrize("prefetch_steps", [0, 2])
def test_the_stream_stops_with_the_name_of_a_damaged_shard(folder: Path, prefetch_steps: int) -> None:
    overwrite(folder / "shard-000007.tar", 512 + 128, b"\xff\xff\xff\x7f")
    config = StreamConfig(context_length=16, rows_per_step=120, prefetch_steps=prefetch_steps)
    stream = TrainStream(Dataset.open(folder), config)
    with pytest.raises(
        DataError, match=r"shard-000007\.tar: shard is damaged \(.*checksum\); restore the file"
    ):
        list(zip(range(stream.steps_per_epoch(0)), stream, strict=False))


def test_reading_a_shard_finds_any_changed_byte(folder: Path) -> None:
    path = folder / "shard-000007.tar"
    content, dataset = path.read_bytes(), Dataset.open(folder, cache_bytes=0)
    offsets = [0, 130, 512, 512 + 128, 1023, len(content) - 1]
    offsets += np.random.default_rng(0).integers(0, len(content), 30).tolist()
    for offset in offsets:
        overwrite(path, offset, bytes([content[offset] ^ 1]))
        with pytest.raises(DataError, match=r"shard-000007\.tar: shard is damaged \(.*checksum\)"):
            dataset.shard(7)
        overwrite(path, offset, content[offset : offset + 1])
        dataset.shard(7)


def test_a_shard_that_does_not_match_the_tables_is_refused(folder: Path) -> None:
    users = pl.read_parquet(folder / "users.parquet")
    lengths = users["num_events"].to_list()
    num_first = int((users["shard"] == 0).sum())
    lengths[:num_first] = lengths[num_first - 1 :: -1]
    assert lengths != users["num_events"].to_list()
    users.with_columns(num_events=pl.Series(lengths)).write_parquet(folder / "users.parquet")
    with pytest.raises(DataError, match=r"shard-000000\.tar: shard is damaged \(its users do not match"):
        Dataset.open(folder).shard(0)


def test_item_ids_above_num_items_are_refused(folder: Path) -> None:
    manifest = json.loads((folder / MANIFEST_NAME).read_text())
    overwrite(folder / "shard-000000.tar", 512 + 128, b"\xff\xff\xff\x7f")
    content = (folder / "shard-000000.tar").read_bytes()
    manifest["shards"][0]["sha256"] = hashlib.sha256(content).hexdigest()
    edit_manifest(folder, shards=manifest["shards"])
    with pytest.raises(DataError, match=r"shard-000000\.tar: shard is damaged \(it contains item ids out"):
        Dataset.open(folder).shard(0)


def test_a_shard_with_the_content_of_another_is_refused(folder: Path) -> None:
    dataset = Dataset.open(folder)
    (folder / "shard-000001.tar").write_bytes((folder / "shard-000002.tar").read_bytes())
    with pytest.raises(DataError, match=r"shard-000001\.tar: shard is damaged \("):
        dataset.shard(1)


def test_decoding_without_times_saves_their_memory(intact: Dataset) -> None:
    dataset = Dataset.open(intact.path)
    items, both = dataset.shard(0, with_times=False), dataset.shard(0)
    assert items.times is None
    assert both.times is not None
    assert np.array_equal(items.items, both.items)
    assert both.num_bytes - items.num_bytes == 8 * len(both.items)
    assert dataset.shard(0, with_times=False) is both


def test_a_shard_deleted_after_opening_is_named(folder: Path) -> None:
    dataset = Dataset.open(folder)
    (folder / "shard-000001.tar").unlink()
    with pytest.raises(DataError, match=r"shard-000001\.tar: shard is missing"):
        dataset.shard(1)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"schema_version": 99}, "schema_version is 99, but this version of longplay reads 2"),
        ({"schema_version": 1, "source": None}, "reads 2; prepare the dataset again with `longplay prepare`"),
        ({"kind": "other"}, "is not the manifest of a prepared dataset"),
        ({"num_events": 1}, "is damaged .*rows do not add up"),
        ({"surprise": 1}, "is damaged .*surprise"),
        ({"shards": []}, "is damaged .*add up to 0"),
    ],
)
def test_a_manifest_that_does_not_match_is_refused(folder: Path, changes: dict, message: str) -> None:
    edit_manifest(folder, **changes)
    with pytest.raises(DataError, match=message):
        Dataset.open(folder)


def test_a_folder_without_a_manifest_is_refused(tmp_path: Path) -> None:
    with pytest.raises(
        DataError,
        match=r"contains no manifest\.json, so it is not a prepared dataset; make one",
    ):
        Dataset.open(tmp_path)
    with pytest.raises(DataError, match=r"gone: does not exist; check the path, or make a dataset with"):
        Dataset.open(tmp_path / "gone")
    (tmp_path / MANIFEST_NAME).write_text("{")
    with pytest.raises(DataError, match="cannot be read"):
        Dataset.open(tmp_path)


@pytest.mark.parametrize("name", ["users.parquet", "items.parquet"])
def test_tables_that_do_not_match_the_manifest_are_refused(folder: Path, name: str) -> None:
    pl.read_parquet(folder / name).head(5).write_parquet(folder / name)
    with pytest.raises(DataError, match=rf"{name}: does not match the manifest"):
        Dataset.open(folder)
    (folder / name).unlink()
    with pytest.raises(DataError, match=rf"{name}: is missing"):
        Dataset.open(folder)


def test_a_cache_smaller_than_a_shard_returns_the_same_sequences(intact: Dataset) -> None:
    small = Dataset.open(intact.path, cache_bytes=1)
    for user in range(intact.num_users):
        assert np.array_equal(small.sequence(user)[0], intact.sequence(user)[0])


def test_original_ids_and_item_ids_are_inverse(intact: Dataset) -> None:
    item_ids = np.arange(1, intact.num_items + 1)
    originals = intact.items.originals(item_ids)
    assert np.array_equal(intact.items.item_ids(originals), item_ids)
    unknown = np.array([-1, originals.max() + 1, 2**62])
    assert intact.items.item_ids(unknown).tolist() == [0, 0, 0]
    with pytest.raises(DataError, match="item id 0 is outside"):
        intact.items.originals(np.array([1, 0]))


@pytest.mark.parametrize("kind", ["leave_one_out", "temporal"])
def test_train_item_counts_match_plain_python(intact: Dataset, kind: Kind) -> None:
    split = SplitConfig(kind=kind)
    counts = np.zeros(intact.num_items + 1, np.int64)
    for user, num_train in enumerate(split_bounds(intact, split).num_train):
        np.add.at(counts, intact.sequence(user)[0][:num_train], 1)
    assert np.array_equal(train_item_counts(intact, split), counts)


@pytest.mark.parametrize("fractions", [(0.1, 0.1), (0.05, 0.3)])
def test_temporal_training_events_are_those_before_validation(
    intact: Dataset, fractions: tuple[float, float]
) -> None:
    split = SplitConfig(kind="temporal", val_fraction=fractions[0], test_fraction=fractions[1])
    val_begin, test_begin = cutoffs(intact, split)
    all_times = np.concatenate([intact.sequence(user)[1] for user in range(intact.num_users)])
    assert np.mean(all_times >= test_begin) == pytest.approx(fractions[1], abs=0.005)
    assert np.mean((all_times >= val_begin) & (all_times < test_begin)) == pytest.approx(
        fractions[0], abs=0.005
    )
    for user, num_train in enumerate(split_bounds(intact, split).num_train):
        times = intact.sequence(user)[1]
        assert np.all(times[:num_train] < val_begin)
        assert np.all(times[num_train:] >= val_begin)


def test_a_temporal_split_of_events_with_equal_times_is_refused(tmp_path: Path) -> None:
    frame = random_events(np.full(30, 5)).with_columns(time=7)
    prepare_dataset(FrameSource(frame), tmp_path / "set", PrepareOptions())
    with pytest.raises(DataError, match="validation starts at 7 and test at 7, so a part is empty"):
        split_bounds(Dataset.open(tmp_path / "set"), SplitConfig(kind="temporal"))


@pytest.mark.parametrize("kind", ["leave_one_out", "temporal"])
def test_no_target_is_a_training_event(intact: Dataset, kind: Kind) -> None:
    bounds = split_bounds(intact, SplitConfig(kind=kind))
    validation, test = bounds.targets["validation"], bounds.targets["test"]
    assert np.all(bounds.num_train[validation >= 0] <= validation[validation >= 0])
    assert np.all(bounds.num_train[test >= 0] <= test[test >= 0])
    both = (validation >= 0) & (test >= 0)
    assert both.any()
    assert np.all(validation[both] < test[both])


def test_users_with_fewer_than_three_events_are_only_trained_on(tmp_path: Path) -> None:
    dataset = make_dataset(tmp_path / "set", np.array([2, 3, 4]))
    bounds = split_bounds(dataset, SplitConfig())
    found = {
        n: (int(t), int(v), int(e))
        for n, t, v, e in zip(
            dataset.lengths,
            bounds.num_train,
            bounds.targets["validation"],
            bounds.targets["test"],
            strict=True,
        )
    }
    assert found == {2: (2, -1, -1), 3: (1, 1, 2), 4: (2, 2, 3)}


def test_bad_split_settings_are_refused() -> None:
    with pytest.raises(ValueError, match=r"kind\s+.* 'leave_one_out' or 'temporal'"):
        SplitConfig(kind="random")  # pyright: ignore[reportArgumentType]  # what a user may type
    with pytest.raises(ValueError, match=r"val_fraction\s+.* greater than 0"):
        SplitConfig(val_fraction=0)
    with pytest.raises(
        ValueError, match=r"val_fraction=0\.6: the sum with test_fraction = 0\.5 must be below 1"
    ):
        SplitConfig(val_fraction=0.6, test_fraction=0.5)
