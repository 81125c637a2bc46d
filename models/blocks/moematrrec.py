"""MoEMaTrRec: Mamba and causal self-attention in parallel, combined by a causal gate."""

import torch
from torch import Tensor, nn

from longplay.models.base.activations import Activations, Execution, total
from longplay.models.base.block import EncoderBlock
from longplay.models.base.config import EncoderConfig
from longplay.models.base.registry import ENCODERS, EncoderEntry
from longplay.models.base.segments import SegmentLayout, select_slots
from longplay.models.blocks.layers import (
    AddNorm,
    build_dropout,
    build_feed_forward,
    build_mixer,
    dropout_activations,
    feed_forward_activations,
    mixer_activations,
    norm_activations,
    stream_activations,
)
from longplay.models.mixers.attention import SegmentAttention


class MoEMaTrRecBlock(EncoderBlock):
    """Post-norm block: gated sum of Mamba and attention, then a feed-forward network as in RecMamba.

    Both branches are computed for every slot, also with top-1 routing.

    Attributes:
        mean_gate: (2,) float32, mean gate weights of Mamba and attention in the last forward; None before
            the first one.
    """

    def __init__(self, config: EncoderConfig, block_index: int) -> None:
        super().__init__(config, block_index)
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
        """Map (B, L, D) to (B, L, D), or to (Q, D) at the flat slots `at`."""
        weights = self._gate_weights(x, layout, at)
        self.mean_gate = weights.detach().flatten(0, -2).mean(0)
        mamba_weight, attention_weight = weights.to(x.dtype).unsqueeze(-1).unbind(-2)
        mixed = mamba_weight * self.mamba(x, layout, at) + attention_weight * self.attention(x, layout, at)
        x = self.mix_join(select_slots(x, at), self.mix_dropout(mixed, dropout_keys))
        return self.feed_forward_join(x, self.feed_forward_dropout(self.feed_forward(x), dropout_keys))

    def require_deterministic(self) -> None:
        """Raise: the gate's cumulative sums have no deterministic algorithm on a GPU.

        Raises:
            ValueError: always.
        """
        raise ValueError(
            "train.deterministic: moematrrec needs cumulative sums, for which PyTorch has no deterministic "
            "algorithm on a GPU; use another model, or --train.device cpu"
        )

    @staticmethod
    def activations(config: EncoderConfig, execution: Execution) -> Activations:
        """Return the activations of one block. The gate saves its input twice and the branch outputs."""
        D = config.d_model
        stream, norm = stream_activations(config), norm_activations(config)
        dropout = dropout_activations(config)
        branches = (
            mixer_activations(config, execution),
            SegmentAttention.activations(config, execution),
            Activations(wide=2 * D + 8, narrow=2 * D),  # gate
        )
        return total(
            *(stream, *branches, dropout, norm),
            *(stream, feed_forward_activations(config), dropout, norm),
            Activations(transient=1.5 * D),
        )

    def _gate_weights(self, x: Tensor, layout: SegmentLayout, at: Tensor | None) -> Tensor:
        """Return the branches' softmax weights, (B, L, 2) or (Q, 2) float32. Top-1 zeroes the smaller one.

        With top-1 the chosen branch is scaled by its probability, which gives the gate a gradient.
        Source: Fedus, Zoph, Shazeer, "Switch Transformers", JMLR 2022, equation 2.
        """
        logits = self.gate(select_slots(torch.cat([x, running_mean(x, layout)], dim=2), at))
        weights = logits.softmax(dim=-1, dtype=torch.float32)
        if self.top1:
            chosen = torch.zeros_like(weights).scatter_(-1, weights.argmax(-1, keepdim=True), 1.0)
            weights = weights * chosen
        return weights


def running_mean(x: Tensor, layout: SegmentLayout) -> Tensor:
    """Return at each slot the mean of its segment up to and including that slot: (B, L, D) -> (B, L, D).

    Sums are taken per segment. Differences of sums over the whole row would mix rounding errors between
    segments.
    """
    wide = torch.promote_types(x.dtype, torch.float32)
    sums = layout.buckets.map(lambda segments: segments.cumsum(1, dtype=wide), x)
    return (sums / (layout.positions + 1).unsqueeze(2)).to(x.dtype)


ENCODERS.register(
    "moematrrec",
    EncoderEntry(
        block=MoEMaTrRecBlock,
        display_name="MoEMaTrRec",
        learned_positions=True,
        ends_normalized=True,
        uses_attention=True,
        uses_state_space=True,
    ),
)
