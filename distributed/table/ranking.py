"""Exact rankings over a sharded table: the targets' positions, and the best items.

Each rank counts, among its own rows, the scores above a target's. `models/scores.py` defines a score. The
positions depend neither on the number of ranks nor on how many queries are ranked at a time.
"""

import itertools
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor

from longplay.distributed.runtime.collectives import all_gather_rows, all_reduce_sum
from longplay.distributed.runtime.waiting import waiting
from longplay.distributed.table.host_memory import take_rows
from longplay.distributed.table.item_table import ItemTable
from longplay.distributed.table.score_counts import count_beating_pairs, count_beating_rows
from longplay.models.scores import exact_scores
from longplay.models.top_k import best_of, top_k


@dataclass(frozen=True, kw_only=True)
class Queries:
    """The queries of one rank; Q differs between ranks and may be 0.

    Attributes:
        hidden: (Q, D) fp32.
        targets: (Q,) int64 items.
        seen: (P, 2) int64 pairs (query, item): distinct items of each user's history without the target.
        sampled: (S, 2) int64 pairs (query, item): the sampled negatives.
    """

    hidden: Tensor
    targets: Tensor
    seen: Tensor
    sampled: Tensor


@dataclass(frozen=True, kw_only=True)
class TargetPositions:
    """Positions (Q,) float64 of the targets, counted from 1; each tied item adds one half.

    Attributes:
        full: among all items.
        full_unseen: among the items that are not in `seen`.
        sampled: among the sampled negatives.
    """

    full: Tensor
    full_unseen: Tensor
    sampled: Tensor


def join_queries(parts: Sequence[Queries]) -> Queries:
    """Concatenate queries of one rank; pairs refer to the concatenated queries."""
    firsts = list(itertools.accumulate((part.targets.shape[0] for part in parts[:-1]), initial=0))

    def pairs(name: str) -> Tensor:
        each = [getattr(part, name) for part in parts]
        return torch.cat([p + p.new_tensor([first, 0]) for p, first in zip(each, firsts, strict=True)])

    return Queries(
        hidden=torch.cat([part.hidden for part in parts]),
        targets=torch.cat([part.targets for part in parts]),
        seen=pairs("seen"),
        sampled=pairs("sampled"),
    )


def target_positions(queries: Queries, table: ItemTable) -> TargetPositions:
    """Return each target's positions among all, unseen and sampled items. Collective."""
    world = table.world
    hidden, counts = all_gather_rows(queries.hidden.float().contiguous(), world)
    start = sum(counts[: world.rank])
    targets, _ = all_gather_rows(queries.targets, world)
    shift = torch.tensor([start, 0], device=hidden.device)
    seen, _ = all_gather_rows(queries.seen + shift, world)
    sampled, _ = all_gather_rows(queries.sampled + shift, world)

    each = torch.arange(hidden.shape[0], device=hidden.device)
    score = torch.zeros(hidden.shape[0], dtype=torch.float64, device=hidden.device)
    query, row = owned_pairs(torch.stack([each, targets], 1), table)
    score[query] = exact_scores(hidden, query, partial(take_rows, table.shard), row)
    all_reduce_sum(score, world)

    beaten = torch.zeros(3, hidden.shape[0], dtype=torch.float64, device=hidden.device)
    own = table.order.positions(targets) - table.first_row
    beaten[0] = count_beating_rows(hidden, table.shard, score, own)
    for number, pairs in ((1, seen), (2, sampled)):
        query, row = owned_pairs(pairs, table)
        beaten[number] = count_beating_pairs(hidden, query, table.shard, row, score)
    all_reduce_sum(beaten, world)
    full, among_seen, among_sampled = beaten[:, start : start + counts[world.rank]]
    return TargetPositions(full=1 + full, full_unseen=1 + full - among_seen, sampled=1 + among_sampled)


def owned_pairs(pairs: Tensor, table: ItemTable) -> tuple[Tensor, Tensor]:
    """Select the (query, item) pairs (P, 2) whose item this rank owns.

    Returns:
        Query numbers (N,) and rows of this rank's shard (N,).
    """
    rows = table.order.positions(pairs[:, 1]) - table.first_row
    with waiting("the pairs of this rank"):
        owned = ((rows >= 0) & (rows < table.num_rows)).nonzero().squeeze(1)
    return pairs[owned, 0], rows[owned]


def top_items(
    hidden: Tensor, table: ItemTable, k: int, excluded: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """Return the k best items of each query over all ranks, best first, ties by item id. Collective.

    Exact for any number of ties, see `top_k`.

    Args:
        hidden: (Q, D) fp32, the same on every rank.
        k: at least 1.
        excluded: (P, 2) int64 pairs (query, item) that may not be returned, the same on every rank.
    Returns:
        (Q, min(k, num_items)) items and float64 scores; item 0 with score -inf where fewer items remain.
    """
    if excluded is None:
        excluded = torch.empty(0, 2, dtype=torch.int64, device=hidden.device)
    query, row = owned_pairs(excluded, table)
    items, scores = top_k(
        hidden,
        table.shard,
        k,
        items=lambda rows: table.order.items(rows + table.first_row),
        excluded=torch.stack([query, row], 1),
    )
    items = all_gather_rows(items.T.contiguous(), table.world)[0].T
    scores = all_gather_rows(scores.T.contiguous(), table.world)[0].T
    return best_of(items, scores, min(k, table.num_items))
