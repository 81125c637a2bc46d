"""The baseline: a training loop as most papers of this field publish it, for comparison only.

The code is our own and has what such loops have in common: one row per user with the latest L events, padded
on the left; one negative per target, drawn in Python until it is not in the user's history; dense Adam over
all weights, the table included; and evaluation user by user against 100 sampled items. It uses Longplay's
Mamba mixer, so that with the same scan a comparison measures the loop, not the scan.

    python -m benchmarks.research_loop     check that both models learn, so that the comparison is fair
"""

from __future__ import annotations

import argparse
import random
from collections.abc import Iterator

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from longplay.models.base.config import ScanName
from longplay.models.base.segments import SegmentLayout
from longplay.models.mixers.mamba import Mamba

_DROPOUT, _NUM_HEADS = 0.2, 2
NUM_SAMPLED = 100


class PaddedUsers(torch.utils.data.Dataset):
    """One example per user: `items`, `targets` and `negatives`, each (L,) int64, left-padded with 0.

    Args:
        histories: each user's items in order, without the held-out ones.
        num_items: items are 1..num_items.
        length: L.
    """

    def __init__(self, histories: list[list[int]], num_items: int, length: int) -> None:
        self.histories, self.num_items, self.length = histories, num_items, length

    def __len__(self) -> int:
        return len(self.histories)

    def __getitem__(self, user: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        history = self.histories[user]
        seen = set(history)
        rows = np.zeros((3, self.length), dtype=np.int64)
        at = self.length - 1
        target = history[-1]
        for item in reversed(history[:-1]):
            negative = random.randint(1, self.num_items)
            while negative in seen:
                negative = random.randint(1, self.num_items)
            rows[0, at], rows[1, at], rows[2, at] = item, target, negative
            target = item
            at -= 1
            if at < 0:
                break
        return rows[0], rows[1], rows[2]


class PaddedMambaRec(nn.Module):
    """Embedding, dropout, and blocks of norm, Mamba, dropout and residual: (B, L) ids -> (B, L, D)."""

    def __init__(self, num_items: int, width: int, num_blocks: int, d_state: int, scan: ScanName) -> None:
        super().__init__()
        self.embedding = nn.Embedding(num_items + 1, width, padding_idx=0)
        self.dropout = nn.Dropout(_DROPOUT)
        self.norms = nn.ModuleList(nn.LayerNorm(width) for _ in range(num_blocks))
        self.mixers = nn.ModuleList(Mamba(width, d_state=d_state, scan=scan) for _ in range(num_blocks))
        self.final_norm = nn.LayerNorm(width)

    def forward(self, items: Tensor) -> Tensor:
        layout = SegmentLayout(torch.zeros_like(items, dtype=torch.int32))
        hidden = self.dropout(self.embedding(items))
        for norm, mixer in zip(self.norms, self.mixers, strict=True):
            hidden = hidden + self.dropout(mixer(norm(hidden), layout))
        return self.final_norm(hidden)


class PaddedSASRec(nn.Module):
    """Causal self-attention by `nn.MultiheadAttention` and an L x L mask: (B, L) ids -> (B, L, D)."""

    def __init__(self, num_items: int, width: int, num_blocks: int, length: int) -> None:
        super().__init__()
        self.embedding = nn.Embedding(num_items + 1, width, padding_idx=0)
        self.positions = nn.Embedding(length, width)
        self.dropout = nn.Dropout(_DROPOUT)
        self.blocks = nn.ModuleList(_AttentionBlock(width) for _ in range(num_blocks))
        self.final_norm = nn.LayerNorm(width)

    def forward(self, items: Tensor) -> Tensor:
        length = items.shape[1]
        hidden = self.embedding(items) * self.embedding.embedding_dim**0.5
        hidden = self.dropout(hidden + self.positions(torch.arange(length)))
        mask = ~torch.tril(torch.ones(length, length, dtype=torch.bool))
        for block in self.blocks:
            hidden = block(hidden, mask)
        return self.final_norm(hidden)


class _AttentionBlock(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.attention_norm, self.feed_forward_norm = nn.LayerNorm(width), nn.LayerNorm(width)
        self.attention = nn.MultiheadAttention(width, _NUM_HEADS, _DROPOUT, batch_first=True)
        self.feed_forward = nn.Sequential(
            nn.Linear(width, 4 * width), nn.GELU(), nn.Dropout(_DROPOUT), nn.Linear(4 * width, width)
        )
        self.dropout = nn.Dropout(_DROPOUT)

    def forward(self, hidden: Tensor, mask: Tensor) -> Tensor:
        query = self.attention_norm(hidden)
        update, _ = self.attention(query, query, query, attn_mask=mask, need_weights=False)
        hidden = hidden + self.dropout(update)
        return hidden + self.dropout(self.feed_forward(self.feed_forward_norm(hidden)))


class ResearchLoop:
    """Train a padded model one step at a time with one negative per target and dense Adam.

    Args:
        workers: processes that build batches; 0 = build them in this process.
    """

    def __init__(
        self, model: PaddedMambaRec | PaddedSASRec, users: PaddedUsers, batch: int, workers: int
    ) -> None:
        self.model = model
        self.optimizer = torch.optim.Adam(model.parameters(), lr=1e-3)
        self.loader = torch.utils.data.DataLoader(
            users, batch_size=batch, shuffle=True, drop_last=True, num_workers=workers
        )
        self._batches: Iterator[list[Tensor]] = iter(())

    def step(self) -> int:
        """Run one optimizer step and return how many targets it trained on."""
        items, targets, negatives = self._next()
        self.model.train()
        hidden = self.model(items)
        valid = targets > 0
        positive = (hidden * self.model.embedding(targets)).sum(-1)[valid]
        negative = (hidden * self.model.embedding(negatives)).sum(-1)[valid]
        loss = F.binary_cross_entropy_with_logits(positive, torch.ones_like(positive))
        loss = loss + F.binary_cross_entropy_with_logits(negative, torch.zeros_like(negative))
        self.optimizer.zero_grad()
        loss.backward()
        self.optimizer.step()
        loss.item()
        return int(valid.sum())

    def _next(self) -> list[Tensor]:
        batch = next(self._batches, None)
        if batch is None:
            self._batches = iter(self.loader)
            batch = next(self._batches)
        return batch


@torch.no_grad()
def evaluate_by_user(
    model: PaddedMambaRec | PaddedSASRec,
    histories: list[list[int]],
    targets: list[int],
    num_items: int,
    length: int,
) -> float:
    """Return the HR@10 of each user's target among 100 items drawn in Python from outside the history."""
    model.eval()
    hits = 0
    for history, target in zip(histories, targets, strict=True):
        seen = {*history, target}
        candidates = [target]
        while len(candidates) <= NUM_SAMPLED:
            drawn = random.randint(1, num_items)
            if drawn not in seen:
                candidates.append(drawn)
        items = torch.zeros(1, length, dtype=torch.int64)
        recent = history[-length:]
        items[0, length - len(recent) :] = torch.tensor(recent)
        hidden = model(items)[0, -1]
        scores = model.embedding(torch.tensor(candidates)) @ hidden
        hits += int((scores[1:] > scores[0]).sum()) < 10
    return hits / len(histories)


def main() -> None:
    """Train both models on sequences in which item n + 1 follows item n, and print their HR@10."""
    argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    ).parse_args()
    num_items, width, length, batch = 30, 16, 12, 32
    histories = [[1 + (first + at) % num_items for at in range(20)] for first in range(64)]
    known, targets = [history[:-1] for history in histories], [history[-1] for history in histories]
    for build in (
        lambda: PaddedMambaRec(num_items, width, 1, 8, "chunk"),
        lambda: PaddedSASRec(num_items, width, 1, length),
    ):
        torch.manual_seed(0)
        model = build()
        loop = ResearchLoop(model, PaddedUsers(known, num_items, length), batch, 0)
        for group in loop.optimizer.param_groups:
            group["lr"] = 0.01
        for _ in range(61):
            loop.step()
        hit_rate = evaluate_by_user(model, known, targets, num_items, length)
        print(f"{type(model).__name__:<15} HR@10 {hit_rate:.3f} (at least 0.9 expected)")


if __name__ == "__main__":
    main()
