"""The sampled negatives of the literature's ranking: never the target, never a seen item.

They are the same at every world size.
"""

import torch
from torch import Tensor

from longplay.models.keyed_random import keyed_integers, row_keys

_STREAM = 0x5A11  # keeps these draws apart from any other use of a user's key
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
    """Draw `count` distinct items per query, uniformly among those that are neither its target nor seen.

    A query with fewer such items gets all of them.

    Args:
        users, targets: (Q,) int64; a query's draw depends on (seed, user) alone.
        seen_ptr: (Q + 1,), seen_items: distinct items of each query, the target not among them.
    Returns:
        (query, item) int64 pairs (S, 2), grouped by query.
    """
    num_queries, width = users.shape[0], num_items + 1
    query = torch.arange(num_queries)
    seen_query = torch.repeat_interleave(query, seen_ptr.diff())
    blocked = torch.cat([seen_query * width + seen_items, query * width + targets]).sort().values
    wanted = torch.minimum(num_items - 1 - seen_ptr.diff(), torch.tensor(count))
    taken = torch.zeros(num_queries, dtype=torch.int64)
    found: list[Tensor] = []
    open_queries = query[wanted > 0]
    for round_number in range(_MAX_ROUNDS):
        if open_queries.numel() == 0:
            break
        keys = row_keys(seed, _STREAM, users[open_queries], torch.full_like(open_queries, round_number))
        drawn = keyed_integers(keys, 0, 2 * count, num_items) + 1
        codes = _first_occurrences((open_queries.unsqueeze(1) * width + drawn).flatten())
        codes = codes[~_contains(blocked, codes)]
        codes = _first_per_query(codes, width, (wanted - taken))
        found.append(codes)
        taken += torch.bincount(codes // width, minlength=num_queries)
        blocked = torch.cat([blocked, codes]).sort().values
        open_queries = query[taken < wanted]
    for each in open_queries.tolist():  # almost everything is seen: shuffle what is left
        left = torch.arange(1, width) + each * width
        left = left[~_contains(blocked, left)]
        keys = row_keys(seed, _STREAM, users[each : each + 1], torch.tensor([_MAX_ROUNDS]))
        order = keyed_integers(keys, 1, left.shape[0], 2**62)[0].argsort()
        found.append(left[order[: int(wanted[each] - taken[each])]])
    codes = torch.cat(found).sort().values if found else torch.empty(0, dtype=torch.int64)
    return torch.stack([codes // width, codes % width], 1)


def _contains(ordered: Tensor, values: Tensor) -> Tensor:
    at = torch.searchsorted(ordered, values).clamp(max=ordered.shape[0] - 1)
    return ordered[at] == values


def _first_occurrences(codes: Tensor) -> Tensor:
    """The distinct codes, in the order in which they first occur."""
    order = codes.argsort(stable=True)
    ordered = codes[order]
    first = torch.ones_like(ordered, dtype=torch.bool)
    first[1:] = ordered[1:] != ordered[:-1]
    return codes[order[first].sort().values]


def _first_per_query(codes: Tensor, width: int, limit: Tensor) -> Tensor:
    """The first `limit[query]` codes of each query; codes are grouped by query, which is code // width."""
    query = codes // width
    starts = torch.searchsorted(query, query)
    return codes[torch.arange(codes.shape[0]) - starts < limit[query]]
