"""MoEMaTrRec: Mamba and causal self-attention side by side, mixed by a gate that sees only the past."""

import torch
from torch import Tensor, nn

from longplay.models.base.config import EncoderConfig
from longplay.models.base.segments import SegmentLayout, select_slots
from longplay.models.blocks.layers import AddNorm, build_dropout, build_feed_forward, build_mixer
from longplay.models.mixers.attention import SegmentAttention


class MoEMaTrRecBlock(nn.Module):
    """Gated mix of Mamba and attention, dropout, add & norm, feed-forward, dropout, add & norm.

    Both branches are computed for every slot, under top-1 routing too.

    Attributes:
        mean_gate: (2,) float32, the last forward's mean weights of Mamba and attention; None before the
            first.
    """

    def __init__(self, config: EncoderConfig, block_index: int) -> None:
        super().__init__()
        self.mamba = build_mixer(config)
        self.attention = SegmentAttention(config.d_model, config.num_heads)
        self.gate = nn.Linear(2 * config.d_model, 2)
        self.top1 = config.gate == "top1"
        self.mix_dropout = build_dropout(config, block_index, 0)
        self.mix_join = AddNorm(config)
        self.feed_forward = build_feed_forward(config)
        self.feed_forward_dropout = build_dropout(config, block_index, 1)
        self.feed_forward_join = AddNorm(config)
        self.mean_gate: Tensor | None = None

    def forward(
        self, x: Tensor, layout: SegmentLayout, dropout_keys: Tensor | None, at: Tensor | None = None
    ) -> Tensor:
        """(B, L, D) -> (B, L, D), or (Q, D) at the flat slots `at`."""
        weights = self._gate_weights(x, layout, at)
        self.mean_gate = weights.detach().flatten(0, -2).mean(0)
        of_mamba, of_attention = weights.to(x.dtype).unsqueeze(-1).unbind(-2)
        mixed = of_mamba * self.mamba(x, layout, at) + of_attention * self.attention(x, layout, at)
        x = self.mix_join(select_slots(x, at), self.mix_dropout(mixed, dropout_keys))
        return self.feed_forward_join(x, self.feed_forward_dropout(self.feed_forward(x), dropout_keys))

    def _gate_weights(self, x: Tensor, layout: SegmentLayout, at: Tensor | None) -> Tensor:
        """(B, L, 2) or (Q, 2) float32: softmax over the branches; under top-1 the smaller weight is 0 and the
        other stays as it is.

        Scaling the chosen branch by its own probability is what gives the gate a gradient.
        Source: Fedus, Zoph, Shazeer, "Switch Transformers", JMLR 2022, equation 2.
        """
        logits = self.gate(select_slots(torch.cat([x, running_mean(x, layout)], dim=2), at))
        weights = logits.softmax(dim=-1, dtype=torch.float32)
        if self.top1:
            chosen = torch.zeros_like(weights).scatter_(-1, weights.argmax(-1, keepdim=True), 1.0)
            weights = weights * chosen
        return weights


def running_mean(x: Tensor, layout: SegmentLayout) -> Tensor:
    """(B, L, D): at each slot the mean over its segment's slots up to and including it.

    Sums run inside re-batched segments: a sum over the row less the sum before the segment would carry other
    segments' rounding.
    """
    wide = torch.promote_types(x.dtype, torch.float32)
    sums = layout.buckets.map(lambda segments: segments.cumsum(1, dtype=wide), x)
    return (sums / (layout.positions + 1).unsqueeze(2)).to(x.dtype)
