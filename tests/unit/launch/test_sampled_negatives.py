"""Sampled negatives are distinct, unseen, uniform and independent of the batch."""

import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from longplay.launch.evaluation.sampled_negatives import sample_unseen


def draw(seen: list[set[int]], targets: list[int], *, num_items: int, count: int) -> list[list[int]]:
    ptr = torch.tensor([0, *(len(items) for items in seen)]).cumsum(0)
    flat = torch.tensor([item for items in seen for item in sorted(items)], dtype=torch.int64)
    pairs = sample_unseen(
        torch.arange(len(seen)), torch.tensor(targets), ptr, flat, num_items=num_items, count=count, seed=3
    )
    return [pairs[pairs[:, 0] == query, 1].tolist() for query in range(len(seen))]


@settings(deadline=None, max_examples=60)
@given(st.data())
def test_negatives_are_distinct_and_unseen_and_limited_only_by_the_catalog(data: st.DataObject) -> None:
    num_items, count = data.draw(st.integers(2, 60)), data.draw(st.integers(1, 30))
    queries = data.draw(st.integers(1, 5))
    targets = [data.draw(st.integers(1, num_items)) for _ in range(queries)]
    seen = [data.draw(st.sets(st.integers(1, num_items))) - {target} for target in targets]
    for items, own, target in zip(
        draw(seen, targets, num_items=num_items, count=count), seen, targets, strict=True
    ):
        assert len(items) == len(set(items)) == min(count, num_items - 1 - len(own))
        assert not set(items) & (own | {target})
        assert all(1 <= item <= num_items for item in items)


def test_a_users_negatives_do_not_depend_on_the_batch() -> None:
    both = draw([{1, 2}, {3}], [4, 5], num_items=500, count=100)
    alone = draw([{1, 2}], [4], num_items=500, count=100)
    assert both[0] == alone[0]


def test_negatives_are_uniform_over_the_unseen_items() -> None:
    queries = 4000
    drawn = draw([{1}] * queries, [2] * queries, num_items=22, count=5)
    counts = torch.bincount(torch.tensor([item for items in drawn for item in items]), minlength=23)
    assert counts[:3].sum() == 0
    expected = queries * 5 / 20
    assert (
        (counts[3:] - expected) ** 2 / expected
    ).sum() < 44  # chi-squared, 19 degrees of freedom, p = 0.001
