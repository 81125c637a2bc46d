"""The registry of encoders. A module adds one with `ENCODERS.register(name, EncoderEntry(...))`."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from longplay.common.registry import Registry

if TYPE_CHECKING:  # reading settings must not import torch
    from longplay.models.base.block import EncoderBlock


@dataclass(frozen=True, kw_only=True)
class EncoderEntry:
    """Properties of one encoder.

    Attributes:
        block: class of the encoder's blocks.
        display_name: name in tables and figures, for example "SASRec".
        learned_positions: default of `positional_embedding`.
        ends_normalized: whether a block ends with a norm. If so, no final norm follows the last block.
        uses_attention: whether the block has attention heads. If so, num_heads must divide d_model.
        uses_state_space: whether the block has the state-space mixer selected by `mixer`.
        options_type: frozen dataclass of `EncoderConfig.options`; None = the encoder has no options.
    """

    block: type[EncoderBlock]
    display_name: str
    learned_positions: bool = False
    ends_normalized: bool = False
    uses_attention: bool = False
    uses_state_space: bool = False
    options_type: type | None = None

    @property
    def recurrent(self) -> bool:
        """Whether the encoder can also advance one event at a time."""
        return hasattr(self.block, "init_state") and hasattr(self.block, "step")


ENCODERS: Registry[EncoderEntry] = Registry("encoder", package="longplay.models.blocks")
