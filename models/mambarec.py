"""MambaRec: plain Mamba blocks, each standing for a whole Transformer block, feed-forward included."""

import torch
from torch import Tensor, nn

from longplay.models.config import EncoderConfig
from longplay.models.dropout import LaneDropout
from longplay.models.layers import build_mixer, build_norm, dropout_id
from longplay.models.mamba import MambaState
from longplay.models.segments import SegmentLayout


class MambaRecBlock(nn.Module):
    """x + dropout(mamba(norm(x))): the pre-norm residual block of the Mamba paper."""

    def __init__(self, config: EncoderConfig, block_index: int) -> None:
        super().__init__()
        self.residual = config.residual
        self.norm = build_norm(config)
        self.mixer = build_mixer(config)
        self.dropout = LaneDropout(config.dropout, dropout_id(block_index, 0))

    def forward(self, x: Tensor, layout: SegmentLayout, dropout_keys: Tensor | None) -> Tensor:
        """(B, L, D) -> (B, L, D)."""
        update = self.dropout(self.mixer(self.norm(x), layout), dropout_keys)
        return x + update if self.residual else update

    def init_state(self, batch_size: int, device: torch.device, dtype: torch.dtype) -> MambaState:
        """The mixer's state before the first event."""
        return self.mixer.init_state(batch_size, device, dtype)

    def step(self, x_t: Tensor, state: MambaState) -> tuple[Tensor, MambaState]:
        """One event: (B, D) -> (B, D)."""
        update, state = self.mixer.step(self.norm(x_t), state)
        return x_t + update if self.residual else update, state
