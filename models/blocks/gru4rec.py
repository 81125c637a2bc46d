"""GRU4Rec: gated recurrent layers.

Source: Hidasi et al., "Session-based recommendations with recurrent neural networks", ICLR 2016. The paper
uses neither norms nor skip connections; `layer_norm=False, residual=False` reproduces it.
"""

from typing import NamedTuple

import torch
from torch import Tensor, nn

from longplay.models.base.activations import Activations, Execution, total
from longplay.models.base.config import EncoderConfig
from longplay.models.base.registry import ENCODERS, EncoderEntry
from longplay.models.base.segments import SegmentLayout, select_slots
from longplay.models.blocks.layers import MixerBlock, dropout_activations, stream_activations


class GRUState(NamedTuple):
    """State of a GRU layer between events.

    Attributes:
        hidden: (B, D), the hidden state.
    """

    hidden: Tensor


class GRU4RecBlock(MixerBlock):
    """One GRU layer in a pre-norm block: x + dropout(gru(norm(x)))."""

    def __init__(self, config: EncoderConfig, block_index: int) -> None:
        super().__init__(config, block_index, SegmentGRU(config.d_model))

    @staticmethod
    def activations(config: EncoderConfig, execution: Execution) -> Activations:
        """Return the activations of one block. The GRU saves gates, inputs and outputs of padded slots."""
        D = config.d_model
        norm = Activations(wide=2)
        gru = Activations(narrow=9 * D * execution.padding, transient=2.0 * D)
        return total(stream_activations(config), norm, gru, dropout_activations(config))


class SegmentGRU(nn.GRU):
    """One GRU layer whose state is reset at each segment's start, with the parameters of `nn.GRU`.

    Segments of similar length are padded and batched. A `PackedSequence` needs no padding, but on the CPU its
    backward zero-fills the whole input at every step, which is quadratic in the length.

    The class derives from `nn.GRU` instead of containing one, so that a forward is one module call for any
    number of buckets. ZeRO-3 gathers a module's weights at each call, and all ranks must make the same number
    of gathers.
    """

    def __init__(self, d_model: int) -> None:
        super().__init__(d_model, d_model, batch_first=True)

    def forward(  # type: ignore[override]  # takes a layout instead of a state
        self, x: Tensor, layout: SegmentLayout, at: Tensor | None = None
    ) -> Tensor:
        """Map (B, L, D) to (B, L, D), or to (Q, D) at the flat slots `at`."""
        run = super().forward
        return select_slots(layout.buckets.map(lambda segments: run(segments)[0], x), at)

    def init_state(self, batch_size: int, device: torch.device, dtype: torch.dtype) -> GRUState:
        """Return the state before the first event."""
        return GRUState(torch.zeros(batch_size, self.hidden_size, device=device, dtype=dtype))

    def step(self, x_t: Tensor, state: GRUState) -> tuple[Tensor, GRUState]:
        """Advance by one event: (B, D) -> (B, D)."""
        output, hidden = super().forward(x_t.unsqueeze(1), state.hidden.unsqueeze(0))
        return output.squeeze(1), GRUState(hidden.squeeze(0))


ENCODERS.register("gru4rec", EncoderEntry(block=GRU4RecBlock, display_name="GRU4Rec"))
