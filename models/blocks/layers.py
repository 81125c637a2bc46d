"""Layers shared by the blocks of several encoders, each with a formula of its activations."""

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from longplay.models.base.activations import Activations, Execution
from longplay.models.base.block import EncoderBlock
from longplay.models.base.config import ActivationName, EncoderConfig
from longplay.models.base.dropout import KeyedDropout
from longplay.models.base.segments import SegmentLayout, select_slots
from longplay.models.mixers.mamba import Mamba
from longplay.models.mixers.mamba2 import Mamba2
from longplay.native.triton_runtime import can_run_triton

WIDEST_ROW = 256  # of the layer norm's kernel
_LAYERS_PER_BLOCK = 8  # dropout layer ids reserved per block; id 0 is the input dropout
_ACTIVATIONS = {"gelu": F.gelu, "relu": F.relu, "silu": F.silu}
_MIXERS: dict[str, type[Mamba] | type[Mamba2]] = {"mamba": Mamba, "mamba2": Mamba2}


class FeedForward(nn.Module):
    """Position-wise feed-forward network: linear, activation, linear.

    Args:
        d_model: width of input and output.
        d_ff: inner width.
        activation: "gelu", "relu" or "silu".
    """

    def __init__(self, d_model: int, d_ff: int, activation: ActivationName) -> None:
        super().__init__()
        self.up = nn.Linear(d_model, d_ff)
        self.down = nn.Linear(d_ff, d_model)
        self.activation = _ACTIVATIONS[activation]

    def forward(self, x: Tensor) -> Tensor:
        """Map (..., D) to (..., D)."""
        return self.down(self.activation(self.up(x)))


class AddNorm(nn.Module):
    """Post-norm residual connection: norm(x + update). The config can disable the norm or the addition."""

    def __init__(self, config: EncoderConfig) -> None:
        super().__init__()
        self.residual = config.residual
        self.norm = build_norm(config)

    def forward(self, x: Tensor, update: Tensor) -> Tensor:
        """Add `update` to x and normalize: (..., D) -> (..., D)."""
        return self.norm(x + update if self.residual else update)


class LayerNorm(nn.LayerNorm):
    """PyTorch's layer norm, with a kernel for narrow float32 rows on a GPU."""

    def forward(self, input: Tensor) -> Tensor:
        """Normalize `input` (..., D) over the last dimension."""
        is_float32 = input.dtype == self.weight.dtype == torch.float32
        if is_float32 and input.shape[-1] <= WIDEST_ROW and can_run_triton(input.device.type):
            from longplay.models.base.layer_norm_kernel import layer_norm

            return layer_norm(input, self.weight, self.bias, self.eps)
        return super().forward(input)


class MixerBlock(EncoderBlock):
    """Pre-norm block of a recurrent mixer: x + dropout(mixer(norm(x))).

    Args:
        config: the encoder's configuration.
        block_index: index of the block in the stack, from 0.
        mixer: module called as `mixer(x, layout, at)`, with `init_state` and `step` as in `RecurrentBlock`.
    """

    def __init__(self, config: EncoderConfig, block_index: int, mixer: nn.Module) -> None:
        super().__init__(config, block_index)
        self.residual = config.residual
        self.norm = build_norm(config)
        self.mixer: Any = mixer
        self.dropout = build_dropout(config, block_index, 0)

    def forward(
        self, x: Tensor, layout: SegmentLayout, dropout_keys: Tensor | None, at: Tensor | None = None
    ) -> Tensor:
        """Map (B, L, D) to (B, L, D), or to (Q, D) at the flat slots `at`."""
        update = self.dropout(self.mixer(self.norm(x), layout, at), dropout_keys)
        return select_slots(x, at) + update if self.residual else update

    def init_state(self, batch_size: int, device: torch.device, dtype: torch.dtype) -> tuple[Tensor, ...]:
        """Return the mixer's state before the first event."""
        return self.mixer.init_state(batch_size, device, dtype)

    def step(self, x_t: Tensor, state: tuple[Tensor, ...]) -> tuple[Tensor, tuple[Tensor, ...]]:
        """Advance by one event: (B, D) -> (B, D)."""
        update, state = self.mixer.step(self.norm(x_t), state)
        return x_t + update if self.residual else update, state


def build_norm(config: EncoderConfig) -> nn.Module:
    """Build a layer norm, or the identity if the config disables norms."""
    return LayerNorm(config.d_model) if config.layer_norm else nn.Identity()


def build_dropout(config: EncoderConfig, block_index: int, layer_index: int) -> KeyedDropout:
    """Build dropout layer `layer_index` of a block. Each layer of each block has its own masks."""
    assert layer_index < _LAYERS_PER_BLOCK
    return KeyedDropout(config.dropout, layer_id=_LAYERS_PER_BLOCK * (block_index + 1) + layer_index)


def build_feed_forward(config: EncoderConfig) -> FeedForward:
    """Build the feed-forward network selected by the config."""
    return FeedForward(config.d_model, config.feed_forward_width, config.activation)


def build_mixer(config: EncoderConfig) -> Mamba | Mamba2:
    """Build the state-space mixer selected by the config."""
    return _MIXERS[config.mixer].from_config(config)


def mixer_activations(config: EncoderConfig, execution: Execution) -> Activations:
    """Return the activations of the state-space mixer selected by the config."""
    return _MIXERS[config.mixer].activations(config, execution)


def stream_activations(config: EncoderConfig) -> Activations:
    """Return the activations of the residual stream at the input of one sub-layer."""
    return Activations(wide=config.d_model)


def norm_activations(config: EncoderConfig) -> Activations:
    """Return the activations of a layer norm: its output, and the mean and rstd of each slot."""
    return Activations(wide=2, narrow=config.d_model) if config.layer_norm else Activations()


def dropout_activations(config: EncoderConfig) -> Activations:
    """Return the activations of a dropout layer: its mask."""
    return Activations(masks=config.d_model if config.dropout > 0 else 0)


def feed_forward_activations(config: EncoderConfig) -> Activations:
    """Return the activations of a feed-forward network: input and output of its activation function."""
    return Activations(narrow=2 * config.feed_forward_width)
