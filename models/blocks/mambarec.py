"""MambaRec: a stack of Mamba blocks without feed-forward networks."""

from longplay.models.base.activations import Activations, Execution, total
from longplay.models.base.config import EncoderConfig
from longplay.models.base.registry import ENCODERS, EncoderEntry
from longplay.models.blocks.layers import (
    MixerBlock,
    build_mixer,
    dropout_activations,
    mixer_activations,
    norm_activations,
    stream_activations,
)


class MambaRecBlock(MixerBlock):
    """The residual block of the Mamba paper: x + dropout(mamba(norm(x)))."""

    def __init__(self, config: EncoderConfig, block_index: int) -> None:
        super().__init__(config, block_index, build_mixer(config))

    def require_fixed_shapes(self) -> None:
        """Do nothing: all shapes follow from the shape of x."""

    @staticmethod
    def activations(config: EncoderConfig, execution: Execution) -> Activations:
        """Return the activations of one block.

        The mixer's backward runs first, so it cannot reuse memory freed by a feed-forward network. Its
        transient memory is therefore larger than in RecMamba.
        """
        D, E = config.d_model, config.inner_width
        return total(
            stream_activations(config),
            norm_activations(config),
            mixer_activations(config, execution),
            dropout_activations(config),
            Activations(transient=max(1.5 * D, 2.0 * E - D)),
        )


ENCODERS.register(
    "mambarec", EncoderEntry(block=MambaRecBlock, display_name="MambaRec", uses_state_space=True)
)
