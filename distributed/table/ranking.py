"""Exact ranks over a sharded table: each rank counts, among its own rows, the scores above the target's.

What a score is, and how it is counted exactly, is `score_counts`; the ranks do not depend on the number of
ranks, nor on how many queries are ranked at once.
"""

import itertools
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from longplay.distributed.runtime.collectives import all_gather_rows, all_reduce_sum
from longplay.distributed.table.host_memory import take_rows
from longplay.distributed.table.item_table import ItemTable
from longplay.distributed.table.score_counts import (
    count_beating_pairs,
    count_beating_rows,
    exact_dot,
    exact_scores,
)

_BLOCK_ELEMENTS = 1 << 23  # scores in memory at once (32 MiB in fp32), per rank
_TOP_MARGIN = 64  # candidates kept beyond k, against fp32 rounding among near-equal scores


@dataclass(frozen=True, kw_only=True)
class Queries:
    """Queries of one rank for one round; Q may be 0, and ranks may differ in it.

    Attributes:
        hidden: (Q, D) fp32.
        targets: (Q,) int64 items.
        seen: (query index, item) int64 pairs (P, 2): distinct items of each user's history, the target left
            out.
        sampled: (query index, item) pairs (S, 2): the sampled negatives.
    """

    hidden: Tensor
    targets: Tensor
    seen: Tensor
    sampled: Tensor


@dataclass(frozen=True, kw_only=True)
class Ranks:
    """1-based ranks (Q,) float64 of the targets; a tie counts half."""

    full: Tensor
    full_unseen: Tensor
    sampled: Tensor


def join_queries(parts: Sequence[Queries]) -> Queries:
    """Several of one rank's queries as one, in order; their pairs are numbered alike."""
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


def rank_targets(queries: Queries, table: ItemTable) -> Ranks:
    """Rank each target among all items, among the unseen ones, and among its sampled negatives. Every rank
    must call.

    `full_unseen` leaves the seen items out; a target that was seen before stays in.
    """
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
    score[query] = exact_scores(hidden, query, table.shard, row)
    all_reduce_sum(score, world)

    beaten = torch.zeros(3, hidden.shape[0], dtype=torch.float64, device=hidden.device)
    own = table.order.positions(targets) - table.first_row
    beaten[0] = count_beating_rows(hidden, table.shard, score, own)
    for number, pairs in ((1, seen), (2, sampled)):
        query, row = owned_pairs(pairs, table)
        beaten[number] = count_beating_pairs(hidden, query, table.shard, row, score)
    all_reduce_sum(beaten, world)
    full, among_seen, among_sampled = beaten[:, start : start + counts[world.rank]]
    return Ranks(full=1 + full, full_unseen=1 + full - among_seen, sampled=1 + among_sampled)


def owned_pairs(pairs: Tensor, table: ItemTable) -> tuple[Tensor, Tensor]:
    """Of (query, item) pairs (P, 2) those whose item this rank owns: query (N,), row in its shard (N,)."""
    rows = table.order.positions(pairs[:, 1]) - table.first_row
    owned = ((rows >= 0) & (rows < table.num_rows)).nonzero().squeeze(1)
    return pairs[owned, 0], rows[owned]


def top_items(
    hidden: Tensor, table: ItemTable, k: int, excluded: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """The k best items of each query over all ranks, best first (ties by item id). Every rank must call.

    Candidates are picked in float32 and ordered by the exact score; more are picked than k, so that the
    result is exact unless over 64 items lie within float32 rounding of the k-th.

    Args:
        hidden: (Q, D) fp32, the same on every rank.
        k: at most num_items.
        excluded: (query, item) int64 pairs (P, 2) that may not be recommended, the same on every rank.
    Returns:
        (Q, k) items and (Q, k) float64 scores; where fewer than k items remain, item 0 with score -inf.
    """
    shard = table.shard
    keep = min(k + _TOP_MARGIN, table.num_items)
    best = torch.full((hidden.shape[0], 0), 0, dtype=torch.int64, device=hidden.device)
    block = max(keep, _BLOCK_ELEMENTS // max(1, hidden.shape[0]))
    found: list[Tensor] = [best]
    if excluded is None:
        excluded = torch.empty(0, 2, dtype=torch.int64, device=hidden.device)
    banned = table.order.positions(excluded[:, 1]) - table.first_row
    for first in range(0, shard.shape[0], block):
        rows = shard[first : first + block].to(hidden.device, non_blocking=True)
        scores = hidden @ rows.T
        inside = ((banned >= first) & (banned < first + rows.shape[0])).nonzero().squeeze(1)
        scores[excluded[inside, 0], banned[inside] - first] = -torch.inf
        values, at = scores.topk(min(keep, rows.shape[0]), dim=1)
        items = table.order.items(at + first + table.first_row)
        found.append(items.masked_fill(values == -torch.inf, 0))
    mine = torch.cat(found, 1)
    return _merge_top(hidden, mine, table, min(k, table.num_items))


def _merge_top(hidden: Tensor, mine: Tensor, table: ItemTable, k: int) -> tuple[Tensor, Tensor]:
    """Score every rank's candidates (Q, c) exactly and keep the k best of all ranks."""
    query, slot = mine.nonzero(as_tuple=True)
    scores = torch.full(mine.shape, -torch.inf, dtype=torch.float64, device=hidden.device)
    rows = table.order.positions(mine[query, slot]) - table.first_row
    scores[query, slot] = exact_dot(hidden[query], take_rows(table.shard, rows))
    items = all_gather_rows(mine.T.contiguous(), table.world)[0].T
    scores = all_gather_rows(scores.T.contiguous(), table.world)[0].T
    by_item = items.argsort(dim=1, stable=True)
    items, scores = items.gather(1, by_item), scores.gather(1, by_item)
    order = scores.argsort(dim=1, descending=True, stable=True)[:, :k]
    return items.gather(1, order), scores.gather(1, order)
