"""Parts that several models' blocks are made of."""

from torch import Tensor, nn
from torch.nn import functional as F

from longplay.models.config import ActivationName, EncoderConfig
from longplay.models.mamba import Mamba

_LAYERS_PER_BLOCK = 8  # dropout layer ids reserved for each block; id 0 is the input's
_ACTIVATIONS = {"gelu": F.gelu, "relu": F.relu, "silu": F.silu}


class FeedForward(nn.Module):
    """Linear, activation, linear, position by position: (..., D) -> (..., D)."""

    def __init__(self, d_model: int, d_ff: int, activation: ActivationName) -> None:
        super().__init__()
        self.up = nn.Linear(d_model, d_ff)
        self.down = nn.Linear(d_ff, d_model)
        self.activation = activation

    def forward(self, x: Tensor) -> Tensor:
        return self.down(_ACTIVATIONS[self.activation](self.up(x)))


class AddNorm(nn.Module):
    """norm(x + update), the post-norm joint; either half can be switched off for ablation."""

    def __init__(self, config: EncoderConfig) -> None:
        super().__init__()
        self.residual = config.residual
        self.norm = build_norm(config)

    def forward(self, x: Tensor, update: Tensor) -> Tensor:
        return self.norm(x + update if self.residual else update)


def build_norm(config: EncoderConfig) -> nn.Module:
    """Layer norm, or the identity where the ablation switches it off."""
    return nn.LayerNorm(config.d_model) if config.layer_norm else nn.Identity()


def build_mixer(config: EncoderConfig) -> Mamba:
    """The state-space mixer that the config names."""
    return Mamba(
        config.d_model, d_state=config.d_state, d_conv=config.d_conv, expand=config.expand, scan=config.scan
    )


def dropout_id(block_index: int, place: int) -> int:
    """The dropout layer id of the place-th dropout of a block."""
    assert place < _LAYERS_PER_BLOCK
    return _LAYERS_PER_BLOCK * (block_index + 1) + place
