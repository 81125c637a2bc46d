"""Event features are stored exactly, decoded only on request, and verified."""

from __future__ import annotations

import dataclasses
import json
import re
import shutil
from pathlib import Path

import numpy as np
import polars as pl
import pytest
from support.datasets import edit_manifest, log_normal_lengths, make_dataset
from support.feature_sets import described, random_dataset

from longplay.data_shards.errors import DataError
from longplay.data_shards.storage import shard_writer
from longplay.data_shards.storage.dataset import Dataset
from longplay.data_shards.storage.features import FeatureInfo
from longplay.data_shards.storage.inspection import inspect_dataset
from longplay.data_shards.storage.manifest import MANIFEST_NAME, Manifest
from longplay.data_shards.storage.shard_writer import write_shard
from longplay.data_shards.storage.verification import find_problems
from longplay.launch.cli import main


@pytest.fixture(scope="module")
def intact(tmp_path_factory: pytest.TempPathFactory) -> Dataset:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(shard_writer, "BLOCK_EVENTS", 100)
        return random_dataset(tmp_path_factory.mktemp("features") / "set", log_normal_lengths(80))


@pytest.fixture
def folder(intact: Dataset, tmp_path: Path) -> Path:
    """Return a copy of the dataset to damage."""
    return Path(shutil.copytree(intact.path, tmp_path / "set"))


def replace_features(folder: Path, *features: FeatureInfo) -> None:
    dataclasses.replace(Manifest.read(folder), features=features).write(folder)


def test_features_survive_writing_and_reading(intact: Dataset) -> None:
    rng = np.random.default_rng(0)
    events = intact.num_events
    genre = rng.choice(np.array(["rock", "jazz", "folk", None], object), events, p=[0.5, 0.3, 0.1, 0.1])
    price = np.where(rng.random(events) < 0.1, np.nan, rng.normal(10, 3, events)).astype(np.float32)
    shards = [intact.shard(index, features=["price", "genre"]) for index in range(intact.num_shards)]
    assert np.array_equal(
        np.concatenate([shard.features["price"] for shard in shards]), price, equal_nan=True
    )
    values = [None, *intact.feature_values("genre")["value"]]
    codes = np.concatenate([shard.features["genre"] for shard in shards])
    assert [values[code] for code in codes] == genre.tolist()
    assert values[1] == "rock"


def test_only_requested_features_are_decoded(intact: Dataset) -> None:
    dataset = Dataset.open(intact.path)
    plain = dataset.shard(0, with_times=False)
    assert (plain.features, plain.times) == ({}, None)
    one = dataset.shard(0, with_times=False, features=["hour"])
    assert [*one.features] == ["hour"]
    assert one.num_bytes == plain.num_bytes + one.features["hour"].nbytes
    timed = dataset.shard(0)
    assert timed.times is not None
    assert "hour" in timed.features  # shared with the reader that needs it
    assert dataset.shard(0, with_times=False, features=["hour"]) is timed


def test_without_features_nothing_in_a_shard_changes(tmp_path: Path) -> None:
    lengths, events = np.array([2, 3]), np.arange(1, 6)
    plain = write_shard(tmp_path / "a.tar", 0, lengths, events, events)
    assert write_shard(tmp_path / "a.tar", 0, lengths, events, events, {}) == plain


def test_a_manifest_of_an_earlier_version_is_read(tmp_path: Path) -> None:
    dataset = make_dataset(tmp_path / "set", log_normal_lengths(40))
    content = json.loads((tmp_path / "set" / MANIFEST_NAME).read_text())
    del content["features"], content["time_unit"], content["sha256"]
    (tmp_path / "set" / MANIFEST_NAME).write_text(json.dumps(content))
    manifest = Manifest.read(tmp_path / "set")
    assert manifest == dataset.manifest
    assert (manifest.features, manifest.time_unit, manifest.time_unit_s) == ((), None, None)
    assert find_problems(tmp_path / "set") == []


def test_a_dataset_with_features_has_no_problems(intact: Dataset) -> None:
    assert isinstance(intact.path, Path)
    assert find_problems(intact.path) == []


@pytest.mark.parametrize(
    ("change", "problem"),
    [
        ({"features": [{"name": "Hour", "kind": "float"}]}, "feature 'Hour': a name matches"),
        (
            {"features": [{"name": "a", "kind": "text"}]},
            "kind='text'",
        ),
        ({"features": [{"name": "a", "kind": "float"}] * 2}, "a feature occurs twice"),
        ({"features": [{"name": "a", "kind": "categorical"}]}, "num_values is None"),
        ({"features": [{"name": "a", "kind": "float", "least": 1}]}, "least, most, mean, std are"),
        ({"features": [{"name": "a"}]}, "kind"),
        ({"time_unit": "minutes"}, "time_unit='minutes'"),
    ],
)
def test_an_impossible_manifest_is_refused(folder: Path, change: dict[str, object], problem: str) -> None:
    edit_manifest(folder, **change)
    with pytest.raises(DataError, match=problem):
        Manifest.read(folder)


def test_wrong_counts_of_a_vocabulary_are_found(folder: Path) -> None:
    path = folder / "feature-genre.parquet"
    table = pl.read_parquet(path)
    table.with_columns(count=table["count"] + pl.Series([0, 1, 0])).write_parquet(path)
    (problem,) = find_problems(folder)
    assert problem.startswith("feature-genre.parquet: count of code 2 is ")


def test_another_value_of_a_vocabulary_is_found(folder: Path) -> None:
    path = folder / "feature-genre.parquet"
    pl.read_parquet(path).with_columns(value=pl.Series(["a", "b", "c"])).write_parquet(path)
    (problem,) = find_problems(folder)
    assert problem.startswith("manifest.json: dataset_id is ")


def test_a_missing_vocabulary_is_found(folder: Path) -> None:
    (folder / "feature-genre.parquet").unlink()
    assert find_problems(folder) == ["feature-genre.parquet: is missing"]
    with pytest.raises(DataError, match=r"feature-genre\.parquet: is missing; restore"):
        Dataset.open(folder).feature_values("genre")


def test_codes_outside_the_vocabulary_are_found(folder: Path) -> None:
    genre, hour, price = Manifest.read(folder).features
    replace_features(folder, genre, dataclasses.replace(hour, num_values=5), price)
    problems = find_problems(folder)
    assert problems[0] == "shard-000000.tar: feature hour has codes outside 0..5"
    with pytest.raises(DataError, match=r"shard is damaged \(feature hour has codes outside 0..5\)"):
        Dataset.open(folder).shard(0, features=["hour"])


def test_a_wrong_range_is_found(folder: Path) -> None:
    *others, price = Manifest.read(folder).features
    assert price.mean is not None
    replace_features(folder, *others, dataclasses.replace(price, mean=price.mean + 1))
    (problem,) = find_problems(folder)
    assert problem.startswith("manifest.json: least, most, mean and std of feature price are ")


def test_a_feature_of_another_kind_or_none_is_found(folder: Path) -> None:
    genre, hour, price = Manifest.read(folder).features
    replace_features(folder, FeatureInfo(name="genre", kind="float"), hour, price)
    assert "shard-000000.tar: feature genre is int32" in "\n".join(find_problems(folder))
    replace_features(folder, genre, hour, price, FeatureInfo(name="size", kind="float"))
    assert "instead of 0000000000.feature-size.npy" in "\n".join(find_problems(folder))
    with pytest.raises(DataError, match="its values of feature size do not match its events"):
        Dataset.open(folder).shard(0, features=["size"])
    replace_features(folder, hour, price)
    assert "contains 0000000000.feature-genre.npy instead of" in "\n".join(find_problems(folder))


def test_infinities_are_refused(tmp_path: Path) -> None:
    values = np.array([1, np.inf], np.float32)
    assert FeatureInfo(name="price", kind="float").problem(values) == "feature price contains infinities"
    assert described("price", np.full(3, np.nan)) == FeatureInfo(name="price", kind="float")


def test_a_skipped_shard_has_missing_features(folder: Path) -> None:
    (folder / "shard-000001.tar").unlink()
    with pytest.warns(UserWarning, match="shard is missing"):
        dataset = Dataset.open(folder, on_bad_shard="skip")
    shard = dataset.shard(1, features=["genre", "price"])
    assert not shard.features["genre"].any()
    assert np.isnan(shard.features["price"]).all()


def test_inspection_describes_the_features(intact: Dataset) -> None:
    genre, hour, price = inspect_dataset(Dataset.open(intact.path)).features
    assert (genre.most_frequent, genre.info.num_values) == ("rock", 3)
    assert 0.05 < genre.missing_fraction < 0.2
    assert genre.most_frequent_fraction == pytest.approx(0.5, abs=0.1)
    assert (hour.missing_fraction, hour.info.num_values) == (0, 24)
    assert 0.05 < price.missing_fraction < 0.2


def test_the_command_shows_a_line_per_feature(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["inspect", str(folder), "--verify"]) == 0
    found = capsys.readouterr().out
    number = r"-?[\d.]+"
    assert re.search(
        rf"^  genre +categorical, 3 values, most frequent 'rock' \({number}%\), {number}% missing$",
        found,
        re.M,
    )
    assert re.search(
        rf"^  price +float, {number} to {number}, mean {number}, std {number}, {number}% missing$",
        found,
        re.M,
    )
    assert re.search(r"^  in UTC +2001-09-09", found, re.M)
