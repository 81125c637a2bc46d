"""Sampling of negatives."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from longplay.models.base.keyed_random import row_keys
from longplay.models.losses.negatives import SharedNegatives, uniform_negatives


def _keys(count: int) -> torch.Tensor:
    return row_keys(0, 3, torch.arange(count), torch.arange(count))


def _draw(positives: torch.Tensor, num_negatives: int, num_items: int, first: int = 0) -> torch.Tensor:
    """Draw negatives of targets in rows of 10 slots, from row `first` on."""
    slots = torch.arange(len(positives))
    keys = _keys(first + -(-len(slots) // 10))[first:]
    sizes = {"length": 10, "num_negatives": num_negatives, "num_items": num_items}
    return uniform_negatives(keys, slots, positives, **sizes)


@given(num_items=st.integers(2, 50), num_negatives=st.integers(1, 20))
@settings(max_examples=25, deadline=None)
def test_negatives_are_valid_items_other_than_the_target(num_items: int, num_negatives: int) -> None:
    positives = torch.arange(200) % num_items + 1
    negatives = _draw(positives, num_negatives, num_items)
    assert negatives.shape == (200, num_negatives)
    assert int(negatives.min()) >= 1
    assert int(negatives.max()) <= num_items
    assert not bool((negatives == positives.unsqueeze(1)).any())


@pytest.mark.parametrize("target", [1, 4, 7])
def test_negatives_are_uniform_over_all_other_items(target: int) -> None:
    negatives = _draw(torch.full((2000,), target), 30, 7)
    counts = torch.bincount(negatives.flatten(), minlength=8)[1:].double()
    assert counts[target - 1] == 0
    others = counts[counts > 0]
    assert float(((others - 10_000) ** 2 / 10_000).sum()) < 25  # chi square, 5 degrees of freedom


def test_negatives_depend_only_on_the_row_and_the_slot_of_the_target() -> None:
    positives = torch.arange(50) + 1
    whole = _draw(positives, 8, 1000)
    assert torch.equal(_draw(positives[20:30], 8, 1000, first=2), whole[20:30])
    assert torch.equal(_draw(positives, 3, 1000), whole[:, :3])
    assert len(whole.unique(dim=0)) == 50


def test_catalog_of_one_item_raises() -> None:
    with pytest.raises(ValueError, match="num_items=1"):
        _draw(torch.ones(1, dtype=torch.int64), 1, 1)


@pytest.mark.parametrize("alpha", [0.0, 0.5, 1.0])
def test_shared_negatives_follow_their_log_q(alpha: float) -> None:
    counts = torch.tensor([50, 0, 20, 5, 1, 0])
    sampler = SharedNegatives.by_frequency(counts, alpha)
    drawn = sampler.draw(_keys(1), 100_000)
    shares = torch.bincount(drawn, minlength=7)[1:].double() / 100_000
    q = torch.where(counts > 0, counts.double() ** alpha, 0.0)
    q /= q.sum()
    torch.testing.assert_close(shares, q, atol=0.006, rtol=0)
    assert shares[counts == 0].sum() == 0
    present = counts.nonzero().squeeze(1)
    torch.testing.assert_close(sampler.log_q(present + 1).double(), q[present].log(), rtol=1e-5, atol=1e-6)
    assert bool(sampler.log_q(torch.tensor([2, 6])).isfinite().all())


def test_uniform_shared_negatives_cover_the_catalog() -> None:
    sampler = SharedNegatives(9)
    drawn = sampler.draw(_keys(1), 2000)
    assert drawn.unique().tolist() == list(range(1, 10))
    torch.testing.assert_close(sampler.log_q(drawn), torch.full((2000,), -math.log(9.0)))
    assert torch.equal(sampler.draw(_keys(1), 50), drawn[:50])


@pytest.mark.parametrize("counts", [[], [0, 0], [3, -1]])
def test_invalid_counts_raise(counts: list[int]) -> None:
    with pytest.raises(ValueError, match="counts"):
        SharedNegatives.by_frequency(torch.tensor(counts), 1.0)
