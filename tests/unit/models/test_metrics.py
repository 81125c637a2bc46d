"""Ranking metrics: definitions, order of results, invalid positions, and custom metrics."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from longplay.common.registry import Registry
from longplay.models import metrics
from longplay.models.metrics import METRICS, Metric, metric_names, ranking_metrics


@given(positions=st.lists(st.integers(2, 80).map(lambda twice: twice / 2), min_size=2, max_size=40))
@settings(max_examples=40, deadline=None)
def test_metrics_match_their_definitions(positions: list[float]) -> None:
    got = ranking_metrics(torch.tensor(positions), cutoffs=(5, 10))
    naive = {"mrr": [1 / p for p in positions]}
    for k in (5, 10):
        naive[f"hit@{k}"] = [float(p <= k) for p in positions]
        naive[f"ndcg@{k}"] = [1 / math.log2(p + 1) if p <= k else 0.0 for p in positions]
    assert set(got) == set(naive) | {f"{name}_se" for name in naive}
    for name, values in naive.items():
        mean = sum(values) / len(values)
        se = math.sqrt(sum((v - mean) ** 2 for v in values) / (len(values) - 1) / len(values))
        assert got[name] == pytest.approx(mean, abs=1e-12)
        assert got[f"{name}_se"] == pytest.approx(se, abs=1e-12)


def test_metrics_do_not_depend_on_the_order_of_positions() -> None:
    positions = torch.randint(1, 1000, (5000,), generator=torch.Generator().manual_seed(0)).double()
    assert ranking_metrics(positions) == ranking_metrics(positions.flip(0))


def test_half_integer_positions_are_compared_exactly_with_the_cutoff() -> None:
    got = ranking_metrics(torch.tensor([5.0, 5.5]), cutoffs=(5,))
    assert got["hit@5"] == 0.5


def test_standard_error_of_one_position_is_nan() -> None:
    assert math.isnan(ranking_metrics(torch.tensor([3]))["mrr_se"])


@pytest.mark.parametrize(
    ("positions", "message"), [([], "N at least 1"), ([0.5], "found 0.5"), ([float("nan")], "found nan")]
)
def test_invalid_positions_raise(positions: list[float], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        ranking_metrics(torch.tensor(positions))


def test_each_metric_is_followed_by_its_standard_error() -> None:
    got = list(ranking_metrics(torch.tensor([1, 2]), cutoffs=(5, 10)))
    assert got[::2] == ["mrr", "hit@5", "ndcg@5", "hit@10", "ndcg@10"]
    assert got[1::2] == [f"{name}_se" for name in got[::2]]


def test_registered_metric_is_listed_and_computed(monkeypatch: pytest.MonkeyPatch) -> None:
    registry: Registry[Metric] = Registry("metric")
    for name, metric in METRICS.items():
        registry.register(name, metric)
    registry.register("gain", Metric(value=lambda positions: 2.0**-positions, takes_cutoff=True))
    monkeypatch.setattr(metrics, "METRICS", registry)
    assert metric_names((2, 3)) == ["mrr", "hit@2", "ndcg@2", "gain@2", "hit@3", "ndcg@3", "gain@3"]
    assert ranking_metrics(torch.tensor([1, 3]), cutoffs=(2,))["gain@2"] == 0.25
