"""From a config to an encoder."""

import torch
from torch import nn

from longplay.models.base.config import EncoderConfig
from longplay.models.blocks.gru4rec import GRU4RecBlock
from longplay.models.blocks.layers import build_norm
from longplay.models.blocks.mambarec import MambaRecBlock
from longplay.models.blocks.moematrrec import MoEMaTrRecBlock
from longplay.models.blocks.recmamba import RecMambaBlock
from longplay.models.blocks.sasrec import SASRecBlock
from longplay.models.encoder import SequenceEncoder

_BLOCKS = {
    "gru4rec": GRU4RecBlock,
    "sasrec": SASRecBlock,
    "recmamba": RecMambaBlock,
    "mambarec": MambaRecBlock,
    "moematrrec": MoEMaTrRecBlock,
}
_ENDS_NORMALISED = ("recmamba", "moematrrec")  # post-norm blocks: a final norm would normalise twice


def build_encoder(
    config: EncoderConfig, generator: torch.Generator | None = None, *, device: str = "cpu"
) -> SequenceEncoder:
    """The encoder that `config` describes, in float32 on the CPU, initialised from `generator` alone.

    Neither reads nor changes the global generator.

    Args:
        config: the model and its switches.
        generator: a CPU generator, advanced by one draw; None = one seeded with 0.
        device: "meta" makes shapes without memory.
    """
    generator = generator or torch.Generator().manual_seed(0)
    seed = int(torch.randint(2**62, (1,), generator=generator))
    with torch.random.fork_rng(devices=[]), torch.device(device):
        torch.default_generator.manual_seed(seed)
        blocks: list[nn.Module] = [_BLOCKS[config.model](config, index) for index in range(config.num_blocks)]
        final_norm = nn.Identity() if config.model in _ENDS_NORMALISED else build_norm(config)
        return SequenceEncoder(config, blocks, final_norm)
