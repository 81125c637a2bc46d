"""top_k against a full sort of exact scores, with ties and any block size."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from longplay.models.scores import exact_dot
from longplay.models.top_k import top_k


def full_sort(
    queries: torch.Tensor, rows: torch.Tensor, items: torch.Tensor, excluded: torch.Tensor, k: int
) -> list[list[tuple[int, float]]]:
    """Return up to k best (item, score) of each query by Python's sort."""
    banned = {tuple(pair) for pair in excluded.tolist()}
    lists = []
    for number, query in enumerate(queries):
        scores = exact_dot(query.expand_as(rows), rows).tolist()
        ranked = sorted(
            (-score, item)
            for row, (score, item) in enumerate(zip(scores, items.tolist(), strict=True))
            if (number, row) not in banned
        )
        lists.append([(item, -score) for score, item in ranked[:k]])
    return lists


def as_lists(items: torch.Tensor, scores: torch.Tensor) -> list[list[tuple[int, float]]]:
    return [
        [(item, score) for item, score in zip(ids, values, strict=True) if score > -torch.inf]
        for ids, values in zip(items.tolist(), scores.tolist(), strict=True)
    ]


@given(
    seed=st.integers(0, 1 << 20),
    num_queries=st.integers(1, 4),
    num_rows=st.integers(1, 60),
    width=st.integers(1, 9),
    kinds=st.integers(1, 60),
    k=st.integers(1, 70),
    block_rows=st.integers(1, 70),
    num_excluded=st.integers(0, 80),
)
def test_top_k_matches_a_full_sort(
    seed: int,
    num_queries: int,
    num_rows: int,
    width: int,
    kinds: int,
    k: int,
    block_rows: int,
    num_excluded: int,
) -> None:
    generator = torch.Generator().manual_seed(seed)
    queries = torch.randn(num_queries, width, generator=generator)
    # Few distinct rows give ties. A changed last bit gives rows that float32 products do not distinguish.
    rows = torch.randn(kinds, width, generator=generator)[
        torch.randint(kinds, (num_rows,), generator=generator)
    ]
    bumped = torch.rand(num_rows, generator=generator) < 0.3
    rows[bumped, 0] = torch.nextafter(rows[bumped, 0], torch.tensor(9.0))
    items = torch.randperm(num_rows, generator=generator) + 1
    excluded = torch.stack(
        [
            torch.randint(num_queries, (num_excluded,), generator=generator),
            torch.randint(-5, num_rows + 5, (num_excluded,), generator=generator),
        ],
        1,
    )
    found = top_k(queries, rows, k, items=lambda at: items[at], excluded=excluded, block_rows=block_rows)
    assert found[0].shape == found[1].shape == (num_queries, min(k, num_rows))
    assert as_lists(*found) == full_sort(queries, rows, items, excluded, k)


@pytest.mark.parametrize("num_rows", [500, 5000])
def test_equal_scores_are_ordered_by_item_id(num_rows: int) -> None:
    rows = torch.ones(num_rows, 8)
    excluded = torch.tensor([[0, num_rows - 1]])
    items, scores = top_k(
        torch.ones(2, 8), rows, 3, items=lambda at: num_rows - at, excluded=excluded, block_rows=300
    )
    assert items.tolist() == [[2, 3, 4], [1, 2, 3]]
    assert (scores == 8).all()


def test_query_without_remaining_items_gets_item_0() -> None:
    excluded = torch.tensor([[0, 0], [0, 1]])
    items, scores = top_k(torch.ones(2, 4), torch.ones(2, 4), 5, items=lambda at: at + 1, excluded=excluded)
    assert items.tolist() == [[0, 0], [1, 2]]
    assert scores.tolist() == [[-torch.inf, -torch.inf], [4.0, 4.0]]


def test_empty_table_gives_no_items() -> None:
    nothing = torch.empty(0, 2, dtype=torch.int64)
    items, _ = top_k(torch.ones(2, 4), torch.ones(0, 4), 5, items=lambda at: at, excluded=nothing)
    assert items.shape == (2, 0)
