"""MambaRec: plain Mamba blocks, each standing for a whole Transformer block, feed-forward included."""

from longplay.models.base.config import EncoderConfig
from longplay.models.blocks.layers import MixerBlock, build_mixer


class MambaRecBlock(MixerBlock):
    """x + dropout(mamba(norm(x))): the residual block of the Mamba paper, nothing else."""

    def __init__(self, config: EncoderConfig, block_index: int) -> None:
        super().__init__(config, block_index, build_mixer(config))
