"""SASRec: a causal Transformer over item embeddings and learned positions.

Source: Kang and McAuley, "Self-attentive sequential recommendation", ICDM 2018, in the pre-norm form with a
final norm.
"""

from torch import Tensor, nn

from longplay.models.base.config import EncoderConfig
from longplay.models.base.segments import SegmentLayout, select_slots
from longplay.models.blocks.layers import build_dropout, build_feed_forward, build_norm
from longplay.models.mixers.attention import SegmentAttention


class SASRecBlock(nn.Module):
    """x + dropout(attention(norm(x))), then the same with the feed-forward."""

    def __init__(self, config: EncoderConfig, block_index: int) -> None:
        super().__init__()
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
        """(B, L, D) -> (B, L, D), or (Q, D) at the flat slots `at`."""
        update = self.attention_dropout(self.attention(self.attention_norm(x), layout, at), dropout_keys)
        x = select_slots(x, at) + update if self.residual else update
        update = self.feed_forward_dropout(self.feed_forward(self.feed_forward_norm(x)), dropout_keys)
        return x + update if self.residual else update
