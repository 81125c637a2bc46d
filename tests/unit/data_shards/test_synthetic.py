"""Synthetic events have exact counts, are determined by the seed, and are predictable from their order."""

from __future__ import annotations

from collections import Counter, defaultdict
from itertools import pairwise

import numpy as np
import polars as pl
import pytest

from longplay.data_shards.errors import DataError
from longplay.data_shards.readers.synthetic import SyntheticSource


def frame_of(source: SyntheticSource) -> pl.DataFrame:
    """Return the events of a generator as a frame of `user`, `item` and `time`."""
    events = next(iter(source.blocks(0))).parse()
    return pl.DataFrame({"user": events.user, "item": events.item, "time": events.time})


SMALL = SyntheticSource(users=300, items=500, events=20_000, seed=1)


def test_the_seed_determines_the_events() -> None:
    frame = frame_of(SMALL)
    assert frame.equals(frame_of(SMALL))
    other = frame_of(SyntheticSource(users=300, items=500, events=20_000, seed=2))
    assert not frame.equals(other)


def test_counts_are_exact() -> None:
    frame = frame_of(SMALL)
    lengths = frame.group_by("user").len()["len"]
    assert next(iter(SMALL.blocks(0))).parse().rows_in == frame.height == 20_000
    assert len(lengths) == 300
    assert min(lengths) >= 5
    assert frame["item"].n_unique() <= 500
    assert frame.select((pl.col("time").diff().over("user") >= 0).all()).item()


def test_order_predicts_far_better_than_popularity() -> None:
    frame = frame_of(SyntheticSource())
    sequences = [group["item"].to_list() for _, group in frame.group_by("user", maintain_order=True)]
    popular = {item for item, _ in Counter(item for s in sequences for item in s[:-1]).most_common(10)}
    following: defaultdict[int, Counter] = defaultdict(Counter)
    for items in sequences:
        for before, after in pairwise(items[:-1]):
            following[before][after] += 1
    likely = {item: {after for after, _ in counts.most_common(10)} for item, counts in following.items()}
    by_popularity = np.mean([items[-1] in popular for items in sequences])
    by_order = np.mean([items[-1] in likely.get(items[-2], ()) for items in sequences])
    assert 0.01 < by_popularity < 0.05
    assert by_order > 0.4


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"items": 3}, "--items is 3, but must be at least 50"),
        ({"users": 10, "events": 40}, "--events is 40, but must be at least 50"),
        ({"seed": -1}, "--seed is -1, but must not be negative"),
        ({"zipf": -1.0}, "--zipf is -1.0, but must be between 0 and 10"),
        ({"zipf": float("nan")}, "--zipf is nan, but must be between 0 and 10"),
        ({"length_sigma": float("inf")}, "--length-sigma is inf, but must be between 0 and 10"),
        ({"follow_probability": 1.5}, "--follow-probability is 1.5"),
    ],
)
def test_bad_settings_are_named(settings: dict, message: str) -> None:
    with pytest.raises(DataError, match=message):
        SyntheticSource(**settings)


def test_extreme_settings_generate_events() -> None:
    for settings in (
        {"users": 1, "events": 5, "items": 50},
        {"zipf": 0.0},
        {"length_sigma": 0.0},
        {"zipf": 10.0, "length_sigma": 10.0},
        {"items": 77},
    ):
        source = SyntheticSource(**{"users": 20, "items": 60, "events": 400, **settings})
        assert next(iter(source.blocks(0))).parse().rows_in == source.events
