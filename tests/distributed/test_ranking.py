"""Target positions, best items and full cross-entropy over the sharded table equal brute force."""

import os

import pytest
import torch
from support.ranks import run_ranks
from torch.nn import functional as F

from longplay.distributed.runtime.world import World
from longplay.distributed.table import score_counts
from longplay.distributed.table.config import ItemTableConfig
from longplay.distributed.table.full_softmax import full_softmax_loss
from longplay.distributed.table.item_table import ItemTable
from longplay.distributed.table.ranking import Queries, target_positions, top_items

NUM_ITEMS, WIDTH, NUM_QUERIES = 1003, 16, 40


def rows_in_item_order() -> torch.Tensor:
    """Return (NUM_ITEMS, WIDTH) rows; 100 are duplicates and 50 differ from another row in the last bit."""
    rows = torch.randn(NUM_ITEMS, WIDTH, generator=torch.Generator().manual_seed(3))
    rows[500:600] = rows[100:200]
    rows[700:750] = rows[100:150]
    rows[700:750, 0] = torch.nextafter(rows[700:750, 0], torch.tensor(9.0))
    return rows


def make_table(world: World) -> ItemTable:
    table = ItemTable(ItemTableConfig(), num_items=NUM_ITEMS, width=WIDTH, world=world, read_only=True)
    mine = torch.arange(table.first_row, table.first_row + table.num_rows)
    table.shard.copy_(rows_in_item_order()[table.order.items(mine) - 1])
    return table


def make_queries() -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    hidden = torch.randn(NUM_QUERIES, WIDTH, generator=generator)
    targets = torch.randint(1, NUM_ITEMS + 1, (NUM_QUERIES,), generator=generator)
    targets[:20] = torch.arange(101, 121)

    def pairs(count: int) -> torch.Tensor:
        query = torch.randint(0, NUM_QUERIES, (count,), generator=generator)
        item = torch.randint(1, NUM_ITEMS + 1, (count,), generator=generator)
        both = torch.stack([query, item], 1).unique(dim=0)
        return both[targets[both[:, 0]] != both[:, 1]]

    return hidden, targets, pairs(600), pairs(2000)


def positions_of_this_rank(world: World, block_elements: int) -> list[torch.Tensor]:
    score_counts.BLOCK_ELEMENTS = block_elements
    hidden, targets, seen, sampled = make_queries()
    low, high = (NUM_QUERIES * r // world.world_size for r in (world.rank, world.rank + 1))

    def part(pairs: torch.Tensor) -> torch.Tensor:
        inside = (pairs[:, 0] >= low) & (pairs[:, 0] < high)
        return pairs[inside] - torch.tensor([low, 0])

    queries = Queries(
        hidden=hidden[low:high], targets=targets[low:high], seen=part(seen), sampled=part(sampled)
    )
    positions = target_positions(queries, make_table(world))
    return [positions.full, positions.full_unseen, positions.sampled]


def brute_force() -> list[torch.Tensor]:
    hidden, targets, seen, sampled = make_queries()
    scores = (hidden.double().unsqueeze(1) * rows_in_item_order().double()).sum(-1)
    each = torch.arange(NUM_QUERIES)
    own = scores[each, targets - 1].unsqueeze(1)

    def position(candidates: torch.Tensor) -> torch.Tensor:
        candidates = candidates.clone()
        candidates[each, targets - 1] = False
        above, tied = (candidates & (scores > own)).sum(1), (candidates & (scores == own)).sum(1)
        return 1 + above.double() + tied.double() / 2

    everything = torch.ones(NUM_QUERIES, NUM_ITEMS, dtype=torch.bool)
    unseen, drawn = everything.clone(), torch.zeros_like(everything)
    unseen[seen[:, 0], seen[:, 1] - 1] = False
    drawn[sampled[:, 0], sampled[:, 1] - 1] = True
    return [position(everything), position(unseen), position(drawn)]


@pytest.mark.parametrize("world_size", [1, 2, 3])
@pytest.mark.parametrize("block_elements", [1 << 23, 4000])
def test_positions_equal_a_brute_force_sort_with_ties(world_size: int, block_elements: int) -> None:
    parts = run_ranks(positions_of_this_rank, world_size, block_elements)
    for kind, expected in enumerate(brute_force()):
        assert (expected % 1 == 0.5).any() or kind == 2, "the test needs ties"
        assert torch.equal(torch.cat([part[kind] for part in parts]), expected)


def positions_without_a_compiler(world: World) -> list[torch.Tensor]:
    os.environ["CXX"] = "no-such-compiler"
    return positions_of_this_rank(world, 1 << 23)


def test_positions_are_the_same_without_a_compiler() -> None:
    (found,) = run_ranks(positions_without_a_compiler, 1)
    assert all(torch.equal(ours, expected) for ours, expected in zip(found, brute_force(), strict=True))


def top_of_this_rank(world: World, k: int) -> tuple[torch.Tensor, torch.Tensor]:
    hidden, _, seen, _ = make_queries()
    return top_items(hidden, make_table(world), k, seen)


@pytest.mark.parametrize("world_size", [1, 2, 3])
@pytest.mark.parametrize("k", [1, 10, NUM_ITEMS + 1])
def test_top_items_equal_a_full_sort_with_ties_by_item(world_size: int, k: int) -> None:
    hidden, _, seen, _ = make_queries()
    scores = (hidden.double().unsqueeze(1) * rows_in_item_order().double()).sum(-1)
    scores[seen[:, 0], seen[:, 1] - 1] = -torch.inf
    expected, order = scores.sort(dim=1, descending=True, stable=True)
    expected_items = (order + 1).masked_fill(expected == -torch.inf, 0)
    for items, values in run_ranks(top_of_this_rank, world_size, k):
        assert torch.equal(values, expected[:, :k])
        assert torch.equal(items, expected_items[:, :k])


def loss_of_this_rank(world: World) -> tuple[float, torch.Tensor, torch.Tensor, torch.Tensor]:
    table = ItemTable(ItemTableConfig(), num_items=NUM_ITEMS, width=WIDTH, world=world, seed=0)
    mine = torch.arange(table.first_row, table.first_row + table.num_rows)
    table.shard.copy_(rows_in_item_order()[table.order.items(mine) - 1])
    hidden, targets, _, _ = make_queries()
    cuts = [0, 7, NUM_QUERIES, NUM_QUERIES] if world.world_size == 3 else [0, NUM_QUERIES]
    low, high = cuts[world.rank], cuts[world.rank + 1]
    part = hidden[low:high].clone().requires_grad_()
    anchor = torch.zeros((), requires_grad=True)
    loss = full_softmax_loss(part, targets[low:high], table, anchor)
    (2 * loss).backward()
    table.finish_gradients()
    table.step(lr=0.1, grad_scale=1.0)
    assert part.grad is not None
    first_moment = table.state()["exp_avg"]  # 0.1 of the mean over ranks after Adam's first step
    return float(loss.detach()), part.grad, table.order.items(mine), first_moment / 0.1 * world.world_size


@pytest.mark.parametrize("world_size", [1, 3])
def test_sharded_cross_entropy_equals_torch_with_uneven_and_empty_ranks(world_size: int) -> None:
    hidden, targets, _, _ = make_queries()
    hidden.requires_grad_()
    rows = rows_in_item_order().requires_grad_()
    loss = F.cross_entropy(hidden @ rows.T, targets - 1, reduction="sum")
    (2 * loss).backward()
    assert hidden.grad is not None
    assert rows.grad is not None
    parts = run_ranks(loss_of_this_rank, world_size)
    assert sum(part[0] for part in parts) == pytest.approx(float(loss.detach()), rel=1e-6)
    torch.testing.assert_close(torch.cat([part[1] for part in parts]), hidden.grad, rtol=1e-5, atol=1e-5)
    for _, _, items, grads in parts:
        torch.testing.assert_close(grads, rows.grad[items - 1], rtol=1e-5, atol=1e-5)
