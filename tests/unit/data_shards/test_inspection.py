"""The description of a dataset matches plain Python over the same sequences."""

from __future__ import annotations

from collections import Counter
from fractions import Fraction
from pathlib import Path

import numpy as np
import polars as pl
import pytest
from support.datasets import (
    FrameSource,
    log_normal_lengths,
    make_dataset,
    prepared,
    random_events,
    sequences,
)

from longplay.data_shards.storage.dataset import Dataset
from longplay.data_shards.storage.inspection import QUANTILES, Distribution, inspect_dataset, percent


@pytest.fixture(scope="module")
def dataset(tmp_path_factory: pytest.TempPathFactory) -> Dataset:
    """Return a dataset with many ties and repeats, several shards, and users with two events."""
    events = random_events(log_normal_lengths(150, least=2), num_items=2000)
    coarse = events.with_columns(time=pl.col("time") // 5000)
    return prepared(FrameSource(coarse), tmp_path_factory.mktemp("inspection") / "set")


def naive_distribution(values: list[int]) -> Distribution:
    ordered = sorted(values)

    def quantile(share: float) -> int:
        exact = Fraction(str(share)) * len(ordered)
        return ordered[-(-exact.numerator // exact.denominator) - 1]

    quantiles = {percent(share): quantile(share) for share in QUANTILES}
    return Distribution(
        min=ordered[0], quantiles=quantiles, max=ordered[-1], mean=sum(ordered) / len(ordered)
    )


def test_repeats_ties_and_density_match_plain_python(dataset: Dataset) -> None:
    repeats = ties = pairs = 0
    for events in sequences(dataset).values():
        seen: set[int] = set()
        for place, (item, time) in enumerate(events):
            repeats += item in seen
            seen.add(item)
            ties += place > 0 and events[place - 1][1] == time
        pairs += len(seen)
    found = inspect_dataset(dataset)
    assert min(repeats, ties) > 100
    assert found.repeat_fraction == repeats / dataset.num_events
    assert found.tie_fraction == ties / dataset.num_events
    assert found.density == pairs / (dataset.num_users * dataset.num_items)


def test_equal_times_of_different_users_are_not_ties(tmp_path: Path) -> None:
    frame = pl.DataFrame({"user": [1, 1, 2, 2], "item": [1, 2, 1, 2], "time": [5, 7, 7, 9]})
    found = inspect_dataset(prepared(FrameSource(frame), tmp_path / "set"))
    assert (found.tie_fraction, found.repeat_fraction, found.density) == (0, 0, 1)


def test_lengths_and_popularity_match_plain_python(dataset: Dataset) -> None:
    events = sequences(dataset)
    found = inspect_dataset(dataset)
    assert found.lengths == naive_distribution([len(each) for each in events.values()])
    descending = sorted(Counter(item for each in events.values() for item, _ in each).values(), reverse=True)
    assert found.popularity.counts == naive_distribution(descending)
    assert found.popularity.num_single == descending.count(1) > 0
    num_items, num_events = len(descending), sum(descending)
    for name, share in (("1%", 100), ("10%", 10)):
        top = descending[: -(-num_items // share)]
        assert found.popularity.top_shares[name] == pytest.approx(sum(top) / num_events, rel=1e-12)
    differences = sum(abs(one - other) for one in descending for other in descending)
    assert found.popularity.gini == pytest.approx(differences / (2 * num_items * num_events), rel=1e-9)


def test_equally_frequent_items_have_a_gini_of_0(tmp_path: Path) -> None:
    frame = pl.DataFrame({"user": [1, 1, 2, 2], "item": [1, 2, 1, 2], "time": [5, 7, 7, 9]})
    found = inspect_dataset(prepared(FrameSource(frame), tmp_path / "set"))
    assert found.popularity.gini == pytest.approx(0, abs=1e-12)
    assert found.popularity.top_shares == {"1%": 0.5, "10%": 0.5}


def test_counts_and_shards_match_the_manifest(dataset: Dataset) -> None:
    found, manifest = inspect_dataset(dataset), dataset.manifest
    assert (found.dataset_id, found.source) == (manifest.dataset_id, manifest.source)
    assert (found.rows_in, found.rows_dropped) == (manifest.rows_in, manifest.rows_dropped)
    assert (found.num_events, found.num_users, found.num_items) == (
        manifest.num_events,
        manifest.num_users,
        manifest.num_items,
    )
    sizes = sorted(shard.num_events for shard in manifest.shards)
    assert found.shard_events == {"min": sizes[0], "median": sizes[(len(sizes) - 1) // 2], "max": sizes[-1]}
    files = sum(path.stat().st_size for path in Path(str(dataset.path)).glob("*.tar"))
    assert (found.num_shards, found.num_bytes) == (len(sizes), files)
    assert found.bytes_per_event == files / manifest.num_events
    times = [time for events in sequences(dataset).values() for _, time in events]
    assert found.time_range == (min(times), max(times))


@pytest.mark.parametrize(
    ("unit_s", "scale", "dates"),
    [
        (1.0, 1, ("2000-04-25 23:05:32", "2003-02-28 17:49:50")),
        (1e-3, 1000, ("2000-04-25 23:05:32", "2003-02-28 17:49:50")),
        (None, 1, None),
        (1.0, 10**9, None),
    ],
    ids=["seconds", "milliseconds", "unknown unit", "not a date"],
)
def test_times_are_shown_as_dates_if_their_unit_is_known(
    tmp_path: Path, unit_s: float | None, scale: int, dates: tuple[str, str] | None
) -> None:
    first, last = 956703932 * scale, 1046454590 * scale
    frame = pl.DataFrame({"user": [1, 1], "item": [1, 2], "time": [first, last]})
    dataset = prepared(FrameSource(frame), tmp_path / "set")
    found = inspect_dataset(dataset, time_unit_s=unit_s)
    assert found.time_range == (first, last)
    assert found.time_range_utc == dates


def test_each_shard_is_read_once_and_in_order(tmp_path: Path) -> None:
    dataset = make_dataset(tmp_path / "set", np.full(40, 5), num_shards=7)
    passed: list[int] = []

    def track(numbers: range, stage: str) -> list[int]:
        passed.extend(numbers)
        return list(numbers)

    inspect_dataset(dataset, track)
    assert passed == list(range(7))
