"""Draw the negatives of sampled ranking: neither the target nor an item of the history.

The draws do not depend on the number of ranks or on the batch.
"""

import torch
from torch import Tensor

from longplay.models.base.keyed_random import keyed_integers, row_keys

_STREAM = 0x5A11  # separates these draws from other draws with a user's key
_MAX_ROUNDS = 8


def sample_unseen(
    users: Tensor,
    targets: Tensor,
    seen_ptr: Tensor,
    seen_items: Tensor,
    *,
    num_items: int,
    count: int,
    seed: int,
) -> Tensor:
    """Draw `count` distinct items per query, uniformly among the items that are neither its target nor seen.

    A query with fewer such items gets all of them.

    Args:
        users: (Q,) int64. The draw of a query depends only on the seed, its user and its items.
        targets: (Q,) int64.
        seen_ptr: (Q + 1,) int64, where each query's items begin in `seen_items`.
        seen_items: (P,) int64, the distinct items of each query in ascending order, without its target.
        num_items: items are 1..num_items.
        count: items per query.
    Returns:
        (query, item) int64 pairs (S, 2), grouped by query.
    """
    num_queries, width = users.shape[0], num_items + 1
    query = torch.arange(num_queries)
    counts = seen_ptr.diff()
    # A pair is one integer, query * width + item. `blocked` is sorted, so that a binary search finds a pair.
    blocked = torch.repeat_interleave(query, counts) * width + seen_items
    missing = torch.minimum(num_items - 1 - counts, torch.tensor(count))
    found: list[Tensor] = []
    open_queries = query[missing > 0]
    for round_number in range(_MAX_ROUNDS):
        if open_queries.numel() == 0:
            break
        keys = row_keys(seed, _STREAM, users[open_queries], torch.full_like(open_queries, round_number))
        drawn = keyed_integers(keys, 0, 2 * count, num_items) + 1
        codes = open_queries.unsqueeze(1) * width + drawn
        fit = ~_repeats(drawn) & (drawn != targets[open_queries].unsqueeze(1)) & ~_contains(blocked, codes)
        fit &= fit.cumsum(1) <= missing[open_queries].unsqueeze(1)
        found.append(codes[fit])
        missing[open_queries] -= fit.sum(1)
        open_queries = open_queries[missing[open_queries] > 0]
        if open_queries.numel():
            blocked = torch.cat([blocked, found[-1]]).sort().values
    for each in open_queries.tolist():  # Nearly every item is seen: shuffle the rest.
        rest = torch.arange(1, width) + each * width
        rest = rest[~_contains(blocked, rest) & (rest != each * width + targets[each])]
        keys = row_keys(seed, _STREAM, users[each : each + 1], torch.tensor([_MAX_ROUNDS]))
        order = keyed_integers(keys, 1, rest.shape[0], 2**62)[0].argsort()
        found.append(rest[order[: int(missing[each])]])
    codes = torch.cat(found) if found else torch.empty(0, dtype=torch.int64)
    drawn_for = codes // width
    if len(found) > 1:
        drawn_for, order = drawn_for.sort(stable=True)
        codes = codes[order]
    return torch.stack([drawn_for, codes - drawn_for * width], 1)


def _contains(ordered: Tensor, values: Tensor) -> Tensor:
    """Return whether each value occurs in `ordered`, which is sorted."""
    if not ordered.numel():
        return torch.zeros_like(values, dtype=torch.bool)
    at = torch.searchsorted(ordered, values).clamp_(max=ordered.shape[0] - 1)
    return ordered[at] == values


def _repeats(values: Tensor) -> Tensor:
    """Return (Q, n) bool: whether a value occurs earlier in its row of `values` (Q, n)."""
    ordered, order = values.sort(dim=1, stable=True)
    return torch.zeros_like(values, dtype=torch.bool).scatter_(
        1, order[:, 1:], ordered[:, 1:] == ordered[:, :-1]
    )
