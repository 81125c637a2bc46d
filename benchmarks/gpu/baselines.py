"""Plain PyTorch on the same sizes: `nn.Embedding`, dense Adam, one padded row per user, bf16 autocast.

The batches are random and lie on the device already, so the baselines read no data.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import nullcontext

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.attention import SDPBackend, sdpa_kernel

from benchmarks.research_loop import PaddedMambaRec

_DROPOUT, _NUM_HEADS = 0.2, 2


class FlashSASRec(nn.Module):
    """SASRec whose attention is `scaled_dot_product_attention` without a mask: (B, L) ids -> (B, L, D).

    On a GPU, bf16 attention runs PyTorch's flash attention, and raises if that does not support it.
    """

    def __init__(self, num_items: int, width: int, num_blocks: int, length: int) -> None:
        super().__init__()
        self.embedding = nn.Embedding(num_items + 1, width, padding_idx=0)
        self.positions = nn.Embedding(length, width)
        self.dropout = nn.Dropout(_DROPOUT)
        self.blocks = nn.ModuleList(_Block(width) for _ in range(num_blocks))
        self.final_norm = nn.LayerNorm(width)

    def forward(self, items: Tensor) -> Tensor:
        """Encode left-padded rows; padding is an item like the others."""
        hidden = self.embedding(items) * self.embedding.embedding_dim**0.5
        hidden = self.dropout(hidden + self.positions.weight[: items.shape[1]])
        for block in self.blocks:
            hidden = block(hidden)
        return self.final_norm(hidden)


class _Block(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.attention_norm, self.feed_forward_norm = nn.LayerNorm(width), nn.LayerNorm(width)
        self.qkv, self.out = nn.Linear(width, 3 * width), nn.Linear(width, width)
        self.feed_forward = nn.Sequential(
            nn.Linear(width, 4 * width), nn.GELU(), nn.Dropout(_DROPOUT), nn.Linear(4 * width, width)
        )
        self.dropout = nn.Dropout(_DROPOUT)

    def forward(self, hidden: Tensor) -> Tensor:
        qkv = self.qkv(self.attention_norm(hidden)).unflatten(2, (3, _NUM_HEADS, -1))
        query, key, value = qkv.permute(2, 0, 3, 1, 4)
        with sdpa_kernel(SDPBackend.FLASH_ATTENTION) if qkv.is_cuda else nullcontext():
            update = F.scaled_dot_product_attention(query, key, value, is_causal=True)
        hidden = hidden + self.dropout(self.out(update.transpose(1, 2).flatten(2)))
        return hidden + self.dropout(self.feed_forward(self.feed_forward_norm(hidden)))


class PlainLoop:
    """Train a model with an `embedding` over random items by dense Adam, with one negative per target.

    Args:
        model: (B, L) ids -> (B, L, D).
        num_items: items are 1..num_items.
        shape: (B, L) of a batch.
    """

    def __init__(
        self, model: nn.Module, num_items: int, shape: tuple[int, int], device: torch.device
    ) -> None:
        self._model = model.to(device).train()
        self._embedding = model.get_submodule("embedding")
        self._optimizer = torch.optim.Adam(model.parameters(), lr=1e-3, fused=True)
        self._items = torch.randint(1, num_items + 1, (3, *shape), device=device)

    def step(self) -> None:
        """Run one optimizer step."""
        items, targets, negatives = self._items
        with torch.autocast(items.device.type, dtype=torch.bfloat16):
            hidden = self._model(items)
        positive, negative = ((hidden.float() * self._embedding(ids)).sum(-1) for ids in (targets, negatives))
        loss = F.softplus(-positive).mean() + F.softplus(negative).mean()
        self._optimizer.zero_grad()
        loss.backward()
        self._optimizer.step()


def plain_models(
    num_items: int, width: int, length: int, device: torch.device
) -> dict[str, Callable[[], nn.Module]]:
    """Return functions that build the baselines, on a GPU with mamba-ssm's scan as in published code."""
    scan = "kernel" if device.type == "cuda" else "auto"
    return {
        "SASRec, 2 blocks, flash attention": lambda: FlashSASRec(num_items, width, 2, length),
        "MambaRec, 1 block": lambda: PaddedMambaRec(num_items, width, 1, 32, scan),
    }
