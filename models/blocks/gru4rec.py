"""GRU4Rec: gated recurrent layers.

Source: Hidasi et al., "Session-based recommendations with recurrent neural networks", ICLR 2016. The original
has neither norm nor skip connection; with `layer_norm=False, residual=False` this is the original.
"""

from typing import NamedTuple

import torch
from torch import Tensor, nn

from longplay.models.base.config import EncoderConfig
from longplay.models.base.segments import SegmentLayout, select_slots
from longplay.models.blocks.layers import MixerBlock


class GRUState(NamedTuple):
    """What a GRU layer carries from one event to the next: hidden (B, D)."""

    hidden: Tensor


class GRU4RecBlock(MixerBlock):
    """x + dropout(gru(norm(x))): one GRU layer."""

    def __init__(self, config: EncoderConfig, block_index: int) -> None:
        super().__init__(config, block_index, SegmentGRU(config.d_model))


class SegmentGRU(nn.GRU):
    """One GRU layer that starts afresh at each segment: (B, L, D) -> (B, L, D). Parameters are `nn.GRU`'s.

    Segments of similar length form one padded batch. A `PackedSequence` has no padding, but on the CPU its
    backward fills the whole input with zeros at every step, which is quadratic in the length.

    It is a GRU, and does not hold one, so that a forward is one module call however many buckets there are:
    ZeRO-3 gathers a module's weights at each call, and the ranks must gather equally often.
    """

    def __init__(self, d_model: int) -> None:
        super().__init__(d_model, d_model, batch_first=True)

    def forward(  # type: ignore[override]  # takes the layout, not a state
        self, x: Tensor, layout: SegmentLayout, at: Tensor | None = None
    ) -> Tensor:
        """(B, L, D) -> (B, L, D), or (Q, D) at the flat slots `at`."""
        run = super().forward
        return select_slots(layout.buckets.map(lambda segments: run(segments)[0], x), at)

    def init_state(self, batch_size: int, device: torch.device, dtype: torch.dtype) -> GRUState:
        """The state before the first event."""
        return GRUState(torch.zeros(batch_size, self.hidden_size, device=device, dtype=dtype))

    def step(self, x_t: Tensor, state: GRUState) -> tuple[Tensor, GRUState]:
        """One event: (B, D) -> (B, D)."""
        output, hidden = super().forward(x_t.unsqueeze(1), state.hidden.unsqueeze(0))
        return output.squeeze(1), GRUState(hidden.squeeze(0))
