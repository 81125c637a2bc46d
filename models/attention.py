"""Causal self-attention inside the segments of packed rows, mask-free: segments are re-batched by length."""

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from longplay.models.segments import SegmentLayout


class SegmentAttention(nn.Module):
    """Multi-head causal self-attention, (B, L, D) -> (B, L, D), in which a slot attends to its own segment
    only.

    Segments of similar length form one batch for `scaled_dot_product_attention(is_causal=True)`; their end
    padding is harmless under causality, and memory grows with the segments, never with L x L. Attention
    weights are not dropped out: drop the output instead, whose mask can be keyed by row.

    Args:
        d_model: width.
        num_heads: heads; divides d_model.
    """

    def __init__(self, d_model: int, num_heads: int) -> None:
        super().__init__()
        self.num_heads = num_heads
        self.qkv_proj = nn.Linear(d_model, 3 * d_model)
        self.out_proj = nn.Linear(d_model, d_model)

    def forward(self, x: Tensor, layout: SegmentLayout) -> Tensor:
        """(B, L, D) -> (B, L, D)."""
        buckets = layout.buckets
        padded = buckets.gather(self.qkv_proj(x).flatten(0, 1))
        attended, offset = [], 0
        for num_segments, num_slots in buckets.shapes:
            size = num_segments * num_slots
            attended.append(self._attend(padded[offset : offset + size], num_segments, num_slots))
            offset += size
        return self.out_proj(buckets.scatter(torch.cat(attended)).view_as(x))

    def _attend(self, qkv: Tensor, num_segments: int, num_slots: int) -> Tensor:
        """qkv (S * T, 3 D) of one bucket -> (S * T, D)."""
        q, k, v = qkv.view(num_segments, num_slots, 3, self.num_heads, -1).permute(2, 0, 3, 1, 4)
        out = F.scaled_dot_product_attention(q, k, v, is_causal=True)
        return out.transpose(1, 2).reshape(num_segments * num_slots, -1)
