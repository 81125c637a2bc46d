"""The sharded table against plain single-process tables, at several world sizes."""

import gc
import math
import weakref
from typing import Any

import pytest
import torch
from support.ranks import run_ranks
from torch import nn
from torch.nn import functional as F

from longplay.distributed.engine import EncoderEngine, EngineConfig
from longplay.distributed.runtime.world import World
from longplay.distributed.table.config import ItemTableConfig
from longplay.distributed.table.initial_rows import fill_initial_rows
from longplay.distributed.table.item_table import ItemTable
from longplay.distributed.table.row_optimizers import LazyAdam, RowAdagrad, RowOptimizerConfig
from longplay.distributed.table.row_order import RowOrder

NUM_ITEMS, WIDTH, STEPS, CLIP, LR = 1001, 16, 12, 0.02, 0.01
EPS = 1e-8


class Tower(nn.Module):
    """A small encoder with matrices, which decay, and biases, which do not."""

    def __init__(self) -> None:
        super().__init__()
        generator = torch.Generator().manual_seed(3)
        self.inner, self.outer = nn.Linear(WIDTH, 24), nn.Linear(24, WIDTH)
        with torch.no_grad():
            for parameter in self.parameters():
                parameter.copy_(torch.randn(parameter.shape, generator=generator) * 0.2)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.outer(torch.tanh(self.inner(x)))


def batch_of(step: int, micro: int) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(100 * step + micro)
    shape = (12, 20)
    items = torch.randint(0, NUM_ITEMS + 1, shape, generator=generator)
    return items, torch.randint(1, NUM_ITEMS + 1, shape, generator=generator)


def scores_loss(hidden: torch.Tensor, positives: torch.Tensor) -> torch.Tensor:
    return F.softplus(-10 * (hidden * positives).sum(-1)).sum()


def train_sharded(
    world: World, update: Any, optimizer: Any, stage: Any, accumulation: int
) -> list[tuple[float, float]]:
    """Train on this rank's share of each global batch; return the loss and gradient norm of each step."""
    config = ItemTableConfig(update=update, optimizer=RowOptimizerConfig(name=optimizer, eps=EPS))
    table = ItemTable(config, num_items=NUM_ITEMS, width=WIDTH, world=world, seed=1)
    engine = EncoderEngine(
        Tower(),
        table,
        EngineConfig(zero_stage=stage, max_grad_norm=CLIP, gradient_accumulation_steps=accumulation),
        world,
    )
    history = []
    for step in range(STEPS):
        total = torch.zeros(())
        for micro in range(accumulation):
            items, targets = (part[world.rank :: world.world_size] for part in batch_of(step, micro))
            exchange, index = table.make_exchange(torch.cat([items.flatten(), targets.flatten()]))
            rows = table.lookup(exchange)
            inputs, positives = F.embedding(index, rows).view(2, *items.shape, WIDTH)
            loss = scores_loss(engine(inputs), positives) / (240 * accumulation)
            engine.backward(loss, last=micro == accumulation - 1)
            assert rows.grad is not None
            table.add_row_gradients(exchange, rows.grad)
            total += loss.detach()
        outcome = engine.step(lr=LR, loss=total, at="in a test")
        history.append((outcome.loss, outcome.grad_norm))
    return history


def train_reference(update: str, optimizer: str, accumulation: int) -> list[tuple[float, float]]:
    """Train the same with one plain embedding, torch's Adam or SparseAdam, and clipping of all weights."""
    table = torch.zeros(NUM_ITEMS, WIDTH)
    fill_initial_rows(table, 0, std=0.02, seed=1)
    order = RowOrder(NUM_ITEMS)
    sparse = update == "row_sparse"
    weight = nn.Parameter(
        torch.cat([torch.zeros(1, WIDTH), table[order.positions(torch.arange(1, NUM_ITEMS + 1))]])
    )
    tower = Tower()
    dense = torch.optim.Adam(tower.parameters(), lr=LR)
    rows = torch.optim.SparseAdam([weight], lr=LR, eps=EPS) if sparse else torch.optim.Adam([weight], lr=LR)
    sum_sq = torch.zeros(NUM_ITEMS + 1)
    history = []
    for step in range(STEPS):
        total = 0.0
        for micro in range(accumulation):
            items, targets = batch_of(step, micro)
            embedded = F.embedding(torch.stack([items, targets]), weight, padding_idx=0)
            loss = scores_loss(tower(embedded[0]), embedded[1]) / (240 * accumulation)
            loss.backward()
            total += float(loss.detach())
        assert weight.grad is not None
        norm = float(nn.utils.clip_grad_norm_([*tower.parameters(), weight], CLIP))
        history.append((total, norm))
        dense.step()
        touched = weight.grad.abs().sum(1).nonzero().squeeze(1)
        grads = weight.grad[touched]
        if optimizer == "adagrad":
            sum_sq[touched] += grads.square().mean(1)
            weight.data[touched] -= LR * grads / (sum_sq[touched].sqrt() + EPS).unsqueeze(1)
        else:
            if sparse:
                weight.grad = torch.sparse_coo_tensor(
                    touched[None], grads, weight.shape, check_invariants=True
                )
            if sparse:  # SparseAdam adds eps before bias correction; dense Adam and LazyAdam add it after
                rows.param_groups[0]["eps"] = EPS * math.sqrt(1 - 0.999 ** (step + 1))
            rows.step()
        dense.zero_grad()
        weight.grad = None
    return history


@pytest.mark.parametrize(
    ("update", "optimizer", "stage", "accumulation", "world_sizes"),
    [
        ("row_sparse", "adam", 1, 1, (1, 4)),
        ("row_sparse", "adam", 2, 2, (3,)),
        ("row_sparse", "adam", 3, 2, (2,)),
        ("row_sparse", "adagrad", 1, 2, (3,)),
        ("zero_dense", "adam", 3, 1, (1, 3)),
        ("zero_dense", "adam", 3, 2, (2,)),
    ],
)
def test_ranks_match_a_single_process_reference_with_clipping(
    update: str, optimizer: str, stage: int, accumulation: int, world_sizes: tuple[int, ...]
) -> None:
    expected = train_reference(update, optimizer, accumulation)
    assert sum(norm > CLIP for _, norm in expected) > STEPS // 2, "clipping must be active"
    for world_size in world_sizes:
        for history in run_ranks(train_sharded, world_size, update, optimizer, stage, accumulation):
            torch.testing.assert_close(torch.tensor(history), torch.tensor(expected), rtol=1e-5, atol=1e-6)


def one_step(table: ItemTable, engine: EncoderEngine, items: torch.Tensor) -> None:
    exchange, index = table.make_exchange(items)
    rows = table.lookup(exchange)
    engine.backward(engine(F.embedding(index, rows)).square().sum(), last=True)
    assert rows.grad is not None
    table.add_row_gradients(exchange, rows.grad)
    engine.step(lr=LR, loss=torch.ones(()), at="in a test")


def storage_after_close(world: World, update: Any, stage: Any) -> bool:
    """Train two steps and close the engine; return whether the table's rows are still allocated."""
    table = ItemTable(ItemTableConfig(update=update), num_items=NUM_ITEMS, width=WIDTH, world=world)
    engine = EncoderEngine(Tower(), table, EngineConfig(zero_stage=stage), world)
    for _ in range(2):
        one_step(table, engine, torch.arange(1, 50))
    storage, dense = (weakref.ref(each.untyped_storage()) for each in (table.shard, table.state()["weight"]))
    del table
    engine.close()
    del engine
    gc.collect()
    return storage() is not None or dense() is not None


@pytest.mark.parametrize(
    ("update", "stage"), [("row_sparse", 1), ("row_sparse", 2), ("row_sparse", 3), ("zero_dense", 3)]
)
def test_closing_the_engine_frees_the_table(update: str, stage: int) -> None:
    assert run_ranks(storage_after_close, 2, update, stage) == [False, False]


def test_zero_dense_requires_zero_stage_3() -> None:
    with pytest.raises(AssertionError, match=r"zero_dense needs engine.zero_stage 3, not 1"):
        run_ranks(train_sharded, 1, "zero_dense", "adam", 1, 1)


def bytes_of_a_step(world: World, num_items: int) -> tuple[int, int, int]:
    """Run one step; return the bytes passed to collectives, the table's own count, and the rows touched."""
    table = ItemTable(ItemTableConfig(), num_items=num_items, width=WIDTH, world=world, seed=1)
    engine = EncoderEngine(Tower(), table, EngineConfig(), world)
    items = torch.randint(1, 1000, (12, 20), generator=torch.Generator().manual_seed(world.rank))
    carried = count_collective_bytes()
    exchange, index = table.make_exchange(items.flatten())
    rows = table.lookup(exchange)
    hidden = engine(F.embedding(index, rows))
    engine.backward(hidden.square().sum(), last=True)
    assert rows.grad is not None
    table.add_row_gradients(exchange, rows.grad)
    engine.step(lr=LR, loss=torch.ones(()), at="in a test")
    engine.close()
    return carried["bytes"], table.take_bytes_sent(), exchange.num_unique


def count_collective_bytes() -> dict[str, int]:
    """Count the bytes of every tensor that this process passes to a collective from now on."""
    import torch.distributed as dist

    carried = {"bytes": 0}

    def counted(original):
        def wrapper(*args, **kwargs):
            for value in [*args, *kwargs.values()]:
                if isinstance(value, torch.Tensor):
                    carried["bytes"] += value.numel() * value.element_size()
            return original(*args, **kwargs)

        return wrapper

    for name in (
        "all_to_all_single",
        "all_reduce",
        "all_gather_into_tensor",
        "all_gather",
        "reduce_scatter_tensor",
        "broadcast",
        "reduce",
    ):
        setattr(dist, name, counted(getattr(dist, name)))
    return carried


def test_communication_depends_on_the_touched_rows_and_not_on_the_table_size() -> None:
    small = run_ranks(bytes_of_a_step, 2, 5_000)
    large = run_ranks(bytes_of_a_step, 2, 50_000)
    for (few, own_few, unique), (many, own_many, same) in zip(small, large, strict=True):
        assert unique == same
        assert 0 < own_few <= unique * (8 + 2 * 4 * WIDTH)
        # About half of the touched rows are remote; which ones depends on the size of the table.
        assert abs(many - few) < 0.2 * few
        assert abs(own_many - own_few) < 0.2 * own_few
        assert many < 50_000 * WIDTH * 4 / 10


def cost_of_a_large_table(world: World) -> tuple[int, float, int]:
    """Build and update a table of 5 million rows.

    Returns:
        Bytes passed to collectives, growth of resident memory in MiB, and number of rows on this rank.
    """
    import resource

    bytes_of_a_step(world, 5_000)  # exclude what the first engine of a process allocates
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    carried = count_collective_bytes()
    config = ItemTableConfig(optimizer=RowOptimizerConfig(name="adagrad"))
    table = ItemTable(config, num_items=5_000_000, width=WIDTH, world=world, seed=1)
    engine = EncoderEngine(Tower(), table, EngineConfig(), world)
    items = torch.randint(1, 5_000_001, (500,), generator=torch.Generator().manual_seed(world.rank))
    one_step(table, engine, items)
    grown = (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) / 1024
    return carried["bytes"], grown, table.num_rows


def test_no_rank_holds_or_receives_the_whole_table() -> None:
    whole_mib = 5_000_000 * WIDTH * 4 / 2**20
    for carried, grown, rows in run_ranks(cost_of_a_large_table, 4):
        assert rows == 1_250_000
        assert carried / 2**20 < 0.01 * whole_mib
        # A rank holds a quarter of the weights, and 1/16 of that for Adagrad.
        assert grown < 0.6 * whole_mib


@pytest.mark.parametrize("num_items", [1, 2, 7, 1000, 40_320, 1_000_003])
def test_row_order_is_a_bijection_that_spreads_frequent_items(num_items: int) -> None:
    order = RowOrder(num_items)
    items = torch.arange(1, num_items + 1)
    positions = order.positions(items)
    assert torch.equal(positions.sort().values, torch.arange(num_items))
    assert torch.equal(order.items(positions), items)
    if num_items >= 1000:
        owners = torch.bincount(positions[:100] * 8 // num_items, minlength=8)
        assert owners.min() >= 10
        assert owners.max() <= 15


@pytest.mark.parametrize("first", [0, 5, 16_380])
def test_initial_rows_depend_only_on_seed_and_row(first: int) -> None:
    whole = torch.zeros(40_000, 4)
    fill_initial_rows(whole, 0, std=0.5, seed=9)
    part = torch.zeros(20_000, 4)
    fill_initial_rows(part, first, std=0.5, seed=9)
    assert torch.equal(part, whole[first : first + 20_000])
    assert abs(float(whole.std()) - 0.5) < 0.01


@pytest.mark.parametrize("kind", [LazyAdam, RowAdagrad])
def test_updating_every_row_by_number_equals_updating_all_rows(kind: type) -> None:
    generator = torch.Generator().manual_seed(0)
    first, second = (torch.ones(9, 4) for _ in range(2))
    config = RowOptimizerConfig(name="adam")
    one, other = kind(config, first), kind(config, second)
    for step in range(1, 4):
        grads = torch.randn(9, 4, generator=generator)
        one.step(first, None, grads, lr=0.1, step=step)
        other.step(second, torch.arange(9), grads, lr=0.1, step=step)
    torch.testing.assert_close(first, second)
