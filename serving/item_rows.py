"""The exported item table, memory-mapped from its file."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from longplay.models.top_k import top_k
from longplay.serving.export_files import map_table

_QUERIES_AT_ONCE = 256  # per pass over the item table


def parse_device(name: str) -> torch.device:
    """Return the device of `longplay.load`.

    Raises:
        ValueError: the name is not one of a device, or PyTorch finds no such device.
    """
    try:
        device = torch.device(name)
    except RuntimeError:
        raise ValueError(f"device={name!r}: is not a device; use 'cpu' or 'cuda'") from None
    if device.type == "cuda" and not torch.cuda.is_available():
        raise ValueError(f"device={name!r}: PyTorch finds no CUDA device; use device='cpu'")
    return device


class ItemRows:
    """Rows 0..num_items of width D in item-id order, memory-mapped; processes on one machine share the pages.

    Args:
        path: item_table.safetensors.
        device: device of the rows that methods return.
    Raises:
        ExportError: the file holds another table, or is damaged.
    """

    def __init__(self, path: Path, *, num_items: int, width: int, device: torch.device) -> None:
        self.num_items, self.width, self.device = num_items, width, device
        self.weight = map_table(path, num_items + 1, width)

    def lookup(self, items: Tensor) -> Tensor:
        """Return rows (..., D) fp32 of item ids (...) int64 on any device; item 0 has a row of zeros."""
        return self.weight[items.cpu()].to(self.device)

    def score(self, hidden: Tensor, items: Tensor) -> Tensor:
        """Return float64 scores (Q, n) of queries (Q, D) fp32 and items (n,) int64."""
        return hidden.double() @ self.lookup(items).double().T

    def top(self, hidden: Tensor, k: int, excluded: Sequence[Sequence[int]]) -> tuple[np.ndarray, np.ndarray]:
        """Return the k best items of each query, best first, ties by item id; exact, see `top_k`.

        Args:
            hidden: (Q, D) fp32 on the device.
            k: at least 1.
            excluded: for each query, the item ids that may not be recommended.
        Returns:
            (Q, min(k, num_items)) int64 items and float64 scores; item 0 and -inf where fewer remain.
        """
        width = min(k, self.num_items)
        found, scores = [np.empty((0, width), np.int64)], [np.empty((0, width))]
        for first in range(0, len(hidden), _QUERIES_AT_ONCE):
            part = slice(first, first + _QUERIES_AT_ONCE)
            rows = [(query, item - 1) for query, items in enumerate(excluded[part]) for item in items]
            pairs = torch.tensor(rows, dtype=torch.int64, device=self.device).view(-1, 2)
            best = top_k(hidden[part], self.weight[1:], k, items=lambda rows: rows + 1, excluded=pairs)
            found.append(best[0].cpu().numpy())
            scores.append(best[1].cpu().numpy())
        return np.concatenate(found), np.concatenate(scores)
