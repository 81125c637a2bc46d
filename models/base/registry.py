"""The registry of encoders: a module calls `ENCODERS.register(name, EncoderEntry(...))`."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from longplay.common.registry import Registry

if TYPE_CHECKING:  # settings are read without torch
    from longplay.models.base.block import EncoderBlock


@dataclass(frozen=True, kw_only=True)
class EncoderEntry:
    """Everything the rest of Longplay needs to know about one encoder.

    Attributes:
        block: the class that the encoder is stacked from; it also states the memory that one block takes.
        display_name: the name in tables and figures: "SASRec".
        learned_positions: the default of `positional_embedding`.
        ends_normalised: the block ends with a norm of its own, so that no final norm follows the last block.
        uses_attention: the block has attention heads; num_heads must divide d_model.
        uses_state_space: the block has the state-space mixer that `mixer` selects.
        options_type: frozen dataclass of the encoder's own options, see `EncoderConfig.options`; None = the
            encoder has none.
    """

    block: type[EncoderBlock]
    display_name: str
    learned_positions: bool = False
    ends_normalised: bool = False
    uses_attention: bool = False
    uses_state_space: bool = False
    options_type: type | None = None

    @property
    def recurrent(self) -> bool:
        """Whether the encoder can also advance one event at a time."""
        return hasattr(self.block, "init_state") and hasattr(self.block, "step")


ENCODERS: Registry[EncoderEntry] = Registry("encoder", package="longplay.models.blocks")
