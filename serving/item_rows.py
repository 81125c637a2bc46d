"""The exported item table, mapped from its file, and exact top-k over it in blocks of bounded memory."""

from pathlib import Path

import torch
from torch import Tensor

from longplay.serving.export_format import map_table

_BLOCK_ROWS = 1 << 18  # rows visited at once, at most
_BLOCK_ELEMENTS = 1 << 23  # scores in memory at once (32 MiB in fp32)
_PAIR_ELEMENTS = 1 << 22  # row elements gathered at once when single pairs are scored


class ItemRows:
    """Rows 0..num_items of width D, in item-id order, read from their file when they are touched.

    Several processes on one machine share the pages; none of them is copied.

    Args:
        path: item_table.safetensors.
        device: where rows are wanted.
    Raises:
        ExportError: the file is not such a table.
    """

    def __init__(self, path: Path, *, num_items: int, width: int, device: torch.device) -> None:
        self.num_items, self.width, self.device = num_items, width, device
        self.weight = map_table(path, num_items + 1, width)

    def lookup(self, items: Tensor) -> Tensor:
        """Rows (..., D) fp32 on the device, of item ids (...) int64 on any device; those of 0 are zeros."""
        return self.weight[items.cpu()].to(self.device)

    def score(self, hidden: Tensor, items: Tensor) -> Tensor:
        """Float64 dot products (Q, n) of hidden (Q, D) fp32 and the rows of items (n,) int64."""
        return hidden.double() @ self.lookup(items).double().T

    def top(self, hidden: Tensor, k: int, excluded: Tensor) -> tuple[Tensor, Tensor]:
        """The k best items of each query, best first, ties by item id: exact, whatever the block size.

        A score is the float64 dot product of the fp32 query and the fp32 row. Blocks are scored in fp32, and
        every item within rounding of the k best is scored again.

        Args:
            hidden: (Q, D) fp32 on the device.
            k: at least 1.
            excluded: (P, 2) int64 (query, item) pairs that may not be recommended.
        Returns:
            (Q, min(k, num_items)) int64 items and float64 scores; 0 and -inf where fewer are left.
        """
        k = min(k, self.num_items)
        items = torch.zeros(hidden.shape[0], k, dtype=torch.int64, device=self.device)
        scores = torch.full(items.shape, -torch.inf, dtype=torch.float64, device=self.device)
        slack = 2 * self.width * 2.0**-24 * hidden.double().norm(dim=1)
        step = min(_BLOCK_ROWS, max(1, _BLOCK_ELEMENTS // max(1, hidden.shape[0])))
        for first in range(1, self.num_items + 1, step):
            rows = self.weight[first : first + step].to(self.device)
            block = hidden @ rows.T
            inside = ((excluded[:, 1] >= first) & (excluded[:, 1] < first + rows.shape[0])).nonzero()[:, 0]
            block[excluded[inside, 0], excluded[inside, 1] - first] = -torch.inf
            tolerance = slack * rows.norm(dim=1).max().double() + 1e-30
            query, at = _within_reach(block, scores[:, -1], tolerance, k)
            items, scores = _merge(items, scores, query, at + first, _exact(hidden, rows, query, at))
        return items, scores


def _within_reach(block: Tensor, kth: Tensor, tolerance: Tensor, k: int) -> tuple[Tensor, Tensor]:
    """(query, row) of every fp32 score that may be among the k best, ordered by query, then row.

    Args:
        block: (Q, R) fp32 scores, -inf where excluded.
        kth: (Q,) float64, the k-th best exact score so far, -inf where there are fewer.
        tolerance: (Q,) float64, by how much an fp32 score can be wrong.
    """
    bound = kth - tolerance
    if k <= block.shape[1] and bool((kth == -torch.inf).any()):
        # The k-th best fp32 score of this block is beaten by k exact ones, but for twice the rounding.
        bound = torch.maximum(bound, block.topk(k, dim=1).values[:, -1].double() - 2 * tolerance)
    below = bound.float()  # rounded down, so that fp32 itself excludes nothing
    below = torch.nextafter(below, torch.full_like(below, -torch.inf))
    query, row = ((block >= below.unsqueeze(1)) & (block > -torch.inf)).nonzero(as_tuple=True)
    return query, row


def _exact(hidden: Tensor, rows: Tensor, query: Tensor, at: Tensor) -> Tensor:
    """Float64 scores (n,) of the pairs (hidden[query], rows[at])."""
    scores = torch.empty(query.shape[0], dtype=torch.float64, device=hidden.device)
    step = max(1, _PAIR_ELEMENTS // hidden.shape[1])
    for first in range(0, query.shape[0], step):
        pairs = slice(first, first + step)
        scores[pairs] = (hidden[query[pairs]].double() * rows[at[pairs]].double()).sum(1)
    return scores


def _merge(
    items: Tensor, scores: Tensor, query: Tensor, new_items: Tensor, new_scores: Tensor
) -> tuple[Tensor, Tensor]:
    """The best of (items, scores) (Q, k), whose item ids are all smaller, and of new pairs sorted by query
    and item.
    """
    if query.shape[0] == 0:
        return items, scores
    counts = torch.bincount(query, minlength=items.shape[0])
    slot = torch.arange(query.shape[0], device=query.device) - (counts.cumsum(0) - counts)[query]
    k = items.shape[1]
    more = items.new_zeros(items.shape[0], int(counts.max()))
    more_scores = torch.full(more.shape, -torch.inf, dtype=torch.float64, device=items.device)
    more[query, slot], more_scores[query, slot] = new_items, new_scores
    items, scores = torch.cat([items, more], 1), torch.cat([scores, more_scores], 1)
    # Earlier items are in front and those of equal score keep their order: ties go by item id.
    scores, order = scores.sort(dim=1, descending=True, stable=True)
    return items.gather(1, order)[:, :k], scores[:, :k]
