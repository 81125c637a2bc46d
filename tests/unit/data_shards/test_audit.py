"""The audit matches plain Python and finds planted faults."""

from __future__ import annotations

import itertools
import math
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import numpy as np
import polars as pl
import pytest
from support.datasets import FrameSource, Sequences, log_normal_lengths, prepared, real_data, sequences
from support.sources import open_source

from longplay.data_shards.audit.audit import Audit, audit_dataset
from longplay.data_shards.audit.findings import findings
from longplay.data_shards.storage.dataset import Dataset
from longplay.launch.evaluation.popularity import evaluate_popularity
from longplay.launch.settings.config import RunConfig
from longplay.launch.settings.recipes import get_recipe
from longplay.launch.settings.resolving import resolve

NUM_USERS, LENGTH, NUM_ITEMS = 300, 12, 60
Events = np.ndarray
"""(users, events, 3) int64: user, item and time."""


def clean_events() -> Events:
    """Return faultless events: users walk along a ring of items at distinct times; their last are late."""
    rng = np.random.default_rng(0)
    steps = rng.integers(1, 4, (NUM_USERS, LENGTH))
    steps[:, 0] = np.arange(NUM_USERS)
    times = np.sort(rng.choice(10**6, (NUM_USERS, LENGTH), replace=False), axis=1)
    times[:, -1] += 10**6
    users = np.repeat(np.arange(NUM_USERS), LENGTH).reshape(NUM_USERS, LENGTH)
    return np.stack([users, steps.cumsum(axis=1) % NUM_ITEMS, times], axis=2)


def dataset_of(rows: np.ndarray, folder: Path) -> Dataset:
    frame = pl.DataFrame(rows.reshape(-1, 3), schema=["user", "item", "time"], orient="row")
    return prepared(FrameSource(frame), folder)


def audit_of(rows: np.ndarray, tmp_path: Path) -> Audit:
    return audit_dataset(dataset_of(rows, tmp_path / "set"))


def problems(audit: Audit) -> dict[str, str]:
    """Return the values of the findings that are problems."""
    return {finding.name: finding.value for finding in findings(audit) if finding.problem}


def test_nothing_is_found_in_clean_data(tmp_path: Path) -> None:
    audit = audit_of(clean_events(), tmp_path)
    assert problems(audit) == {}
    assert audit.num_tested_users == NUM_USERS


def test_numbered_events_are_found(tmp_path: Path) -> None:
    events = clean_events()
    events[:, :, 2] = np.arange(LENGTH)
    audit = audit_of(events, tmp_path)
    assert problems(audit) == {"numbered events": "100.00%"}
    assert {
        line.value for line in findings(audit) if line.name in ("tied test targets", "leak of the future")
    } == {"unknown"}


def test_tied_test_targets_are_found(tmp_path: Path) -> None:
    events = clean_events()
    events[:75, -2, 2] = events[:75, -1, 2]
    assert problems(audit_of(events, tmp_path))["tied test targets"] == "25.00%"


def test_a_tie_of_one_item_is_no_tied_target(tmp_path: Path) -> None:
    events = clean_events()
    events[:75, -2, 1:] = events[:75, -1, 1:]
    assert audit_of(events, tmp_path).tied_targets == 0


def test_the_spread_over_orders_of_ties_is_found(tmp_path: Path) -> None:
    events = clean_events()
    events[:, :, 2] = 7
    audit = audit_of(events, tmp_path)
    assert audit.baselines is not None
    markov = audit.baselines.markov
    assert markov.highest < 0.5 * markov.as_stored
    assert markov.lowest < markov.mean < markov.highest
    assert {"popularity, ties reordered", "Markov, ties reordered"} <= set(problems(audit))
    text = next(line.text for line in findings(audit) if line.name == "Markov, ties reordered")
    assert "the order of rows holds information" in text


def test_data_without_order_is_found(tmp_path: Path) -> None:
    events = clean_events()
    events[:, :, 1] = np.random.default_rng(1).permuted(events[:, :, 1], axis=1)
    assert set(problems(audit_of(events, tmp_path))) == {"Markov, events shuffled"}


def test_duplicates_are_found(tmp_path: Path) -> None:
    events = clean_events().reshape(-1, 3)
    audit = audit_of(np.concatenate([events, events[::10], events[::20]]), tmp_path)
    extra = len(events[::10]) + len(events[::20])
    assert audit.duplicates == extra / (len(events) + extra)
    assert "duplicates" in problems(audit)


def test_immediate_repeats_are_found(tmp_path: Path) -> None:
    events = clean_events()
    events[:, 5, 1] = events[:, 4, 1]
    assert problems(audit_of(events, tmp_path))["immediate repeats"] == f"{1 / LENGTH:.2%}"


def test_cold_test_targets_are_found(tmp_path: Path) -> None:
    events = clean_events()
    events[:30, -1, 1] = NUM_ITEMS + np.arange(30)
    assert problems(audit_of(events, tmp_path)) == {"cold test targets": "10.00%"}


@pytest.mark.parametrize(("column", "name"), [(0, "user ids that occur"), (1, "item ids that occur")])
def test_missing_ids_are_found(column: int, name: str, tmp_path: Path) -> None:
    events = clean_events()
    count = (NUM_USERS, NUM_ITEMS)[column]
    events[:, :, column] *= 3
    assert problems(audit_of(events, tmp_path)) == {name: f"{count / (3 * count - 2):.2%}"}


def test_scattered_ids_are_unknown(tmp_path: Path) -> None:
    events = clean_events()
    events[:, :, 1] = events[:, :, 1] * 10**12 - 5
    audit = audit_of(events, tmp_path)
    assert audit.item_ids_present is None
    assert problems(audit) == {}


def test_users_of_a_single_item_are_found(tmp_path: Path) -> None:
    events = clean_events()
    events[:30, :, 1] = 5
    assert problems(audit_of(events, tmp_path))["single-item users"] == "10.00%"


def test_the_leak_of_the_future_is_found(tmp_path: Path) -> None:
    events = clean_events()
    events[:60, :, 2] -= 10**7
    assert problems(audit_of(events, tmp_path)) == {"leak of the future": "20.00%"}


def naive_ndcg(events: list[list[int]], num_items: int, score: Callable[[list[int], int], object]) -> float:
    """Return the mean gain of the last item of each sequence of at least 3."""
    gains = []
    for items in events:
        if len(items) < 3:
            continue
        history, target = items[:-1], items[-1]
        candidates = {*range(1, num_items + 1)} - {*history} | {target}
        own = score(history, target)
        above = sum(score(history, item) > own for item in candidates)  # type: ignore[operator]
        tied = sum(score(history, item) == own for item in candidates) - 1
        position = 1 + above + tied / 2
        gains.append(1 / math.log2(position + 1) if position <= 10 else 0)
    return sum(gains) / len(gains)


def naive_baselines(events: list[list[int]], num_items: int) -> tuple[float, float]:
    """Return NDCG@10 of popularity and of the Markov baseline in plain Python."""
    train = [items[:-2] if len(items) >= 3 else items for items in events]
    counts = Counter(item for items in train for item in items)
    pairs = Counter(pair for items in train for pair in itertools.pairwise(items))
    return (
        naive_ndcg(events, num_items, lambda _, item: counts[item]),
        naive_ndcg(events, num_items, lambda history, item: (pairs[history[-1], item], counts[item])),
    )


def random_dataset(folder: Path, seed: int) -> Dataset:
    """Return a dataset with ties, repeats, duplicates, cold items and users with two events."""
    rng = np.random.default_rng(seed)
    lengths = log_normal_lengths(200, seed, median=4)
    user = np.repeat(np.arange(len(lengths)), lengths)
    item = (rng.random(len(user)) ** 4 * 400).astype(np.int64)
    time = rng.integers(0, 12, len(user)) + 5 * (user % 4)
    rows = np.stack([user, item, time], axis=1)
    return dataset_of(np.concatenate([rows, rows[:5]]), folder)


def item_lists(dataset: Dataset) -> list[list[int]]:
    return [dataset.sequence(user)[0].tolist() for user in range(dataset.num_users)]


@pytest.mark.parametrize("seed", range(5))
def test_baselines_match_plain_python(seed: int, tmp_path: Path) -> None:
    dataset = random_dataset(tmp_path / "set", seed)
    found = audit_dataset(dataset).baselines
    assert found is not None
    expected = naive_baselines(item_lists(dataset), dataset.num_items)
    assert (found.popularity.as_stored, found.markov.as_stored) == pytest.approx(expected, abs=1e-12)
    assert found.markov.as_stored != found.popularity.as_stored > 0


def test_the_popularity_baseline_is_that_of_evaluate(tmp_path: Path) -> None:
    dataset = random_dataset(tmp_path / "set", 0)
    config: RunConfig = resolve("sasrec", get_recipe("sasrec"), [])
    found = audit_dataset(dataset).baselines
    assert found is not None
    expected = evaluate_popularity(dataset, config, "test").metrics["full_unseen"]["ndcg@10"]
    assert found.popularity.as_stored == pytest.approx(expected)


def naive_shares(events: Sequences) -> dict[str, float]:
    """Return the shares of an audit in plain Python."""
    tested = [user for user in events.values() if len(user) >= 3]
    train = [event for user in events.values() for event in (user[:-2] if len(user) >= 3 else user)]
    times = sorted(time for _, time in train)
    median, trained = times[(len(times) - 1) // 2], {item for item, _ in train}
    num_events = sum(map(len, events.values()))
    steps = [pair for user in events.values() for pair in itertools.pairwise(user)]
    return {
        "tied_targets": sum(len({i for i, t in user if t == user[-1][1]}) > 1 for user in tested)
        / len(tested),
        "duplicates": sum(len(user) - len({*user}) for user in events.values()) / num_events,
        "immediate_repeats": sum(before[0] == after[0] for before, after in steps) / num_events,
        "cold_targets": sum(user[-1][0] not in trained for user in tested) / len(tested),
        "single_item_users": sum(len({i for i, _ in user}) == 1 for user in events.values()) / len(events),
        "future_leak": sum(user[-1][1] < median for user in tested) / len(tested),
    }


@pytest.mark.parametrize("seed", range(5))
def test_shares_match_plain_python(seed: int, tmp_path: Path) -> None:
    dataset = random_dataset(tmp_path / "set", seed)
    audit = audit_dataset(dataset)
    expected = naive_shares(sequences(dataset))
    assert {name: getattr(audit, name) for name in expected} == expected
    assert min(expected[name] for name in ("tied_targets", "duplicates", "cold_targets", "future_leak")) > 0


def test_movielens_100k_matches_plain_python(tmp_path: Path) -> None:
    dataset = prepared(open_source("csv", real_data("ml-100k.inter.gz")), tmp_path / "set")
    audit = audit_dataset(dataset)
    expected = naive_shares(sequences(dataset))
    assert {name: getattr(audit, name) for name in expected} == expected
    assert audit.baselines is not None
    assert audit.baselines.markov.as_stored == pytest.approx(
        naive_baselines(item_lists(dataset), dataset.num_items)[1]
    )
    assert set(problems(audit)) == {
        "tied test targets",
        "popularity, ties reordered",
        "Markov, ties reordered",
        "leak of the future",
    }


@pytest.mark.parametrize(("max_users", "max_events"), [(20, 10**6), (200, 100), (200, 1)])
def test_a_sample_changes_only_the_baselines(max_users: int, max_events: int, tmp_path: Path) -> None:
    dataset = random_dataset(tmp_path / "set", 0)
    full = audit_dataset(dataset)
    sampled = audit_dataset(dataset, max_users=max_users, max_events=max_events)
    assert {**vars(full), "baselines": None} == {**vars(sampled), "baselines": None}
    assert sampled == audit_dataset(dataset, max_users=max_users, max_events=max_events)
    if sampled.baselines is not None:
        assert sampled.baselines.num_users <= min(max_users, max(1, max_events // 2))


def test_without_a_tested_user_shares_of_targets_are_unknown(tmp_path: Path) -> None:
    events = clean_events()[:, :2]
    audit = audit_of(events, tmp_path)
    assert audit.num_tested_users == 0
    assert audit.baselines is None
    assert problems(audit) == {}
    assert len(findings(audit)) == 12
