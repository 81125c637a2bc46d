"""Parts that several models' blocks are made of."""

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from longplay.models.base.config import ActivationName, EncoderConfig
from longplay.models.base.dropout import KeyedDropout
from longplay.models.base.segments import SegmentLayout, select_slots
from longplay.models.mixers.mamba import Mamba
from longplay.models.mixers.mamba2 import Mamba2

_LAYERS_PER_BLOCK = 8  # dropout layer ids reserved for each block; id 0 is the input's
_ACTIVATIONS = {"gelu": F.gelu, "relu": F.relu, "silu": F.silu}


class FeedForward(nn.Module):
    """Linear, activation, linear, position by position: (..., D) -> (..., D)."""

    def __init__(self, d_model: int, d_ff: int, activation: ActivationName) -> None:
        super().__init__()
        self.up = nn.Linear(d_model, d_ff)
        self.down = nn.Linear(d_ff, d_model)
        self.activation = _ACTIVATIONS[activation]

    def forward(self, x: Tensor) -> Tensor:
        return self.down(self.activation(self.up(x)))


class AddNorm(nn.Module):
    """norm(x + update), the post-norm joint; either half can be switched off for ablation."""

    def __init__(self, config: EncoderConfig) -> None:
        super().__init__()
        self.residual = config.residual
        self.norm = build_norm(config)

    def forward(self, x: Tensor, update: Tensor) -> Tensor:
        return self.norm(x + update if self.residual else update)


class MixerBlock(nn.Module):
    """x + dropout(mixer(norm(x))) with a recurrent mixer: the pre-norm block of MambaRec and GRU4Rec.

    Args:
        config: switches and dropout.
        block_index: counts from 0; keys the dropout.
        mixer: `mixer(x, layout, at)`, with `init_state` and `step`.
    """

    def __init__(self, config: EncoderConfig, block_index: int, mixer: nn.Module) -> None:
        super().__init__()
        self.residual = config.residual
        self.norm = build_norm(config)
        self.mixer: Any = mixer
        self.dropout = build_dropout(config, block_index, 0)

    def forward(
        self, x: Tensor, layout: SegmentLayout, dropout_keys: Tensor | None, at: Tensor | None = None
    ) -> Tensor:
        """(B, L, D) -> (B, L, D), or (Q, D) at the flat slots `at`."""
        update = self.dropout(self.mixer(self.norm(x), layout, at), dropout_keys)
        return select_slots(x, at) + update if self.residual else update

    def init_state(self, batch_size: int, device: torch.device, dtype: torch.dtype) -> tuple[Tensor, ...]:
        """The mixer's state before the first event."""
        return self.mixer.init_state(batch_size, device, dtype)

    def step(self, x_t: Tensor, state: tuple[Tensor, ...]) -> tuple[Tensor, tuple[Tensor, ...]]:
        """One event: (B, D) -> (B, D)."""
        update, state = self.mixer.step(self.norm(x_t), state)
        return x_t + update if self.residual else update, state


def build_norm(config: EncoderConfig) -> nn.Module:
    """Layer norm, or the identity where the ablation switches it off."""
    return nn.LayerNorm(config.d_model) if config.layer_norm else nn.Identity()


def build_dropout(config: EncoderConfig, block_index: int, place: int) -> KeyedDropout:
    """The place-th dropout of a block, with a mask of its own."""
    assert place < _LAYERS_PER_BLOCK
    return KeyedDropout(config.dropout, layer_id=_LAYERS_PER_BLOCK * (block_index + 1) + place)


def build_feed_forward(config: EncoderConfig) -> FeedForward:
    """The feed-forward that the config describes."""
    return FeedForward(config.d_model, config.feed_forward_width, config.activation)


def build_mixer(config: EncoderConfig) -> Mamba | Mamba2:
    """The state-space mixer that the config names."""
    if config.mixer == "mamba2":
        return Mamba2(
            config.d_model,
            d_state=config.d_state,
            d_conv=config.d_conv,
            expand=config.expand,
            headdim=config.headdim,
            scan=config.scan_backend,
        )
    return Mamba(
        config.d_model,
        d_state=config.d_state,
        d_conv=config.d_conv,
        expand=config.expand,
        scan=config.scan_backend,
    )
