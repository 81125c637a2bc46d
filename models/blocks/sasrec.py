"""SASRec: a causal Transformer over item embeddings and learned positions.

Source: Kang and McAuley, "Self-attentive sequential recommendation", ICDM 2018; here with
pre-norm blocks and a final norm.
"""

from torch import Tensor

from longplay.models.base.activations import Activations, Execution, total
from longplay.models.base.block import EncoderBlock
from longplay.models.base.config import EncoderConfig
from longplay.models.base.registry import ENCODERS, EncoderEntry
from longplay.models.base.segments import SegmentLayout, select_slots
from longplay.models.blocks.layers import (
    build_dropout,
    build_feed_forward,
    build_norm,
    dropout_activations,
    feed_forward_activations,
    norm_activations,
    stream_activations,
)
from longplay.models.mixers.attention import SegmentAttention


class SASRecBlock(EncoderBlock):
    """Pre-norm block: x + dropout(attention(norm(x))), then the same with the feed-forward network."""

    def __init__(self, config: EncoderConfig, block_index: int) -> None:
        super().__init__(config, block_index)
        self.residual = config.residual
        self.attention_norm = build_norm(config)
        self.attention = SegmentAttention(config.d_model, config.num_heads)
        self.attention_dropout = build_dropout(config, block_index, 0)
        self.feed_forward_norm = build_norm(config)
        self.feed_forward = build_feed_forward(config)
        self.feed_forward_dropout = build_dropout(config, block_index, 1)

    def forward(
        self, x: Tensor, layout: SegmentLayout, dropout_keys: Tensor | None, at: Tensor | None = None
    ) -> Tensor:
        """Map (B, L, D) to (B, L, D), or to (Q, D) at the flat slots `at`."""
        update = self.attention_dropout(self.attention(self.attention_norm(x), layout, at), dropout_keys)
        x = select_slots(x, at) + update if self.residual else update
        update = self.feed_forward_dropout(self.feed_forward(self.feed_forward_norm(x)), dropout_keys)
        return x + update if self.residual else update

    @staticmethod
    def activations(config: EncoderConfig, execution: Execution) -> Activations:
        """Return the activations of one block."""
        stream, norm = stream_activations(config), norm_activations(config)
        dropout = dropout_activations(config)
        return total(
            *(stream, norm, SegmentAttention.activations(config, execution), dropout),
            *(stream, norm, feed_forward_activations(config), dropout),
            Activations(transient=1.5 * config.d_model),
        )


ENCODERS.register(
    "sasrec",
    EncoderEntry(block=SASRecBlock, display_name="SASRec", learned_positions=True, uses_attention=True),
)
