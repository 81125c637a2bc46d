"""Rankings are exact in a process that allows TF32 or bfloat16 in products."""

from collections.abc import Iterator
from typing import Any

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from longplay.distributed.table.score_counts import count_beating_rows, half_wins
from longplay.models.scores import exact_dot
from longplay.models.top_k import top_k

NUM_QUERIES, NUM_ROWS, WIDTH = 32, 1000, 16
QUERIES, ROWS = torch.randn(NUM_QUERIES + NUM_ROWS, WIDTH, generator=torch.Generator().manual_seed(0)).split(
    [NUM_QUERIES, NUM_ROWS]
)
EXACT = torch.stack([exact_dot(query.expand_as(ROWS), ROWS) for query in QUERIES])


class Bfloat16Products(TorchDispatchMode):
    """Round the operands of float32 products, as hardware with bfloat16 units does."""

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func is torch.ops.aten.mm.default and args[0].dtype == torch.float32:
            args = [operand.bfloat16().float() for operand in args]
        return func(*args, **(kwargs or {}))


@pytest.fixture(autouse=True)
def reduced_precision() -> Iterator[None]:
    torch.set_float32_matmul_precision("medium")
    try:
        with Bfloat16Products():
            yield
    finally:
        torch.set_float32_matmul_precision("highest")


def test_best_items_are_exact() -> None:
    nothing = torch.empty(0, 2, dtype=torch.int64)
    items, scores = top_k(QUERIES, ROWS, 50, items=lambda rows: rows, excluded=nothing)
    best = EXACT.sort(dim=1, descending=True, stable=True)
    assert torch.equal(items, best.indices[:, :50])
    assert torch.equal(scores, best.values[:, :50])


def test_counts_are_exact() -> None:
    outside = torch.full((NUM_QUERIES,), -1)
    for target in EXACT.T[:10]:
        expected = half_wins(EXACT, target.unsqueeze(1)).sum(1)
        assert torch.equal(count_beating_rows(QUERIES, ROWS, target, outside), expected)
