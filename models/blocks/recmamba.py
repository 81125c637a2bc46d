"""RecMamba: post-norm Transformer blocks with Mamba in place of self-attention."""

from typing import Any

import torch
from torch import Tensor

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


class RecMambaBlock(EncoderBlock):
    """Post-norm block: Mamba, dropout, add and norm; feed-forward, dropout, add and norm."""

    def __init__(self, config: EncoderConfig, block_index: int) -> None:
        super().__init__(config, block_index)
        self.mixer: Any = build_mixer(config)
        self.mixer_dropout = build_dropout(config, block_index, 0)
        self.mixer_join = AddNorm(config)
        self.feed_forward = build_feed_forward(config)
        self.feed_forward_dropout = build_dropout(config, block_index, 1)
        self.feed_forward_join = AddNorm(config)

    def forward(
        self, x: Tensor, layout: SegmentLayout, dropout_keys: Tensor | None, at: Tensor | None = None
    ) -> Tensor:
        """Map (B, L, D) to (B, L, D), or to (Q, D) at the flat slots `at`."""
        update = self.mixer_dropout(self.mixer(x, layout, at), dropout_keys)
        x = self.mixer_join(select_slots(x, at), update)
        return self.feed_forward_join(x, self.feed_forward_dropout(self.feed_forward(x), dropout_keys))

    def require_fixed_shapes(self) -> None:
        """Do nothing: all shapes follow from the shape of x."""

    def init_state(self, batch_size: int, device: torch.device, dtype: torch.dtype) -> tuple[Tensor, ...]:
        """Return the mixer's state before the first event."""
        return self.mixer.init_state(batch_size, device, dtype)

    def step(self, x_t: Tensor, state: tuple[Tensor, ...]) -> tuple[Tensor, tuple[Tensor, ...]]:
        """Advance by one event: (B, D) -> (B, D)."""
        update, state = self.mixer.step(x_t, state)
        x_t = self.mixer_join(x_t, update)
        return self.feed_forward_join(x_t, self.feed_forward(x_t)), state

    @staticmethod
    def activations(config: EncoderConfig, execution: Execution) -> Activations:
        """Return the activations of one block."""
        stream, norm = stream_activations(config), norm_activations(config)
        dropout = dropout_activations(config)
        return total(
            *(stream, mixer_activations(config, execution), dropout, norm),
            *(stream, feed_forward_activations(config), dropout, norm),
            Activations(transient=1.5 * config.d_model),
        )


ENCODERS.register(
    "recmamba",
    EncoderEntry(block=RecMambaBlock, display_name="RecMamba", ends_normalized=True, uses_state_space=True),
)
