"""The number of an encoder's parameters and the memory of its activations, without building it."""

import dataclasses
from dataclasses import dataclass
from functools import cache

from longplay.models.base.activations import Activations, Execution, total
from longplay.models.base.config import EncoderConfig
from longplay.models.encoder import build_encoder
from longplay.models.inputs.spec import ITEMS_ONLY, NUM_GAP_BUCKETS, InputSpec

_BUILT_BLOCKS = 32
_SMALL = 1 << 26


class EncoderTooLargeError(ValueError):
    """A weight of the encoder has 2^63 bytes or more."""


@dataclass(frozen=True, kw_only=True)
class SlotBytes:
    """Memory of an encoder's activations, in bytes per slot of a micro-batch.

    Attributes:
        saved: saved by the forward for the backward.
        transient: allocated at the peak of the backward, minus what it has freed by then.
    """

    saved: float
    transient: float


def activation_bytes(
    config: EncoderConfig, execution: Execution, inputs: InputSpec = ITEMS_ONLY
) -> SlotBytes:
    """Return the memory of an encoder's activations per slot of a training step."""
    D = config.d_model
    block = config.entry.block.activations(config, execution)
    first = Activations(masks=D if config.input_dropout_p > 0 else 0)
    last = Activations() if config.entry.ends_normalized else Activations(wide=D + 2)
    edges = total(first, last).saved_bytes(execution.bf16)
    saved = config.num_blocks * block.saved_bytes(execution.bf16) + edges + inputs.saved_bytes(execution.bf16)
    return SlotBytes(saved=saved, transient=4 * block.transient)


def is_small(config: EncoderConfig, inputs: InputSpec = ITEMS_ONLY) -> bool:
    """Return whether an encoder without options has at most 2^26 parameters, by an upper bound.

    This takes microseconds. The first call of `num_parameters`, which is exact, takes a second of imports.
    """
    if config.options:
        return False
    width = config.d_model + config.inner_width + config.feed_forward_width + config.d_state
    block = 4 * width * (width + config.d_conv)
    positions = config.context_length if config.has_positions else 0
    codes = sum(values for _, values in (*inputs.categorical, *inputs.item_categories))
    embedded = positions + codes + inputs.vector_width + len(inputs.floats) + 2 * NUM_GAP_BUCKETS
    return config.num_blocks * block + config.d_model * embedded <= _SMALL


@cache
def num_parameters(config: EncoderConfig, inputs: InputSpec = ITEMS_ONLY) -> int:
    """Return the number of parameters of an encoder without allocating them.

    Blocks after the first 32 are counted like the 32nd, since building each takes a millisecond.

    Raises:
        EncoderTooLargeError: a weight has 2^63 bytes or more.
    """
    if config.num_blocks > _BUILT_BLOCKS:
        most, fewer = (
            num_parameters(dataclasses.replace(config, num_blocks=_BUILT_BLOCKS - less), inputs)
            for less in (0, 1)
        )
        return most + (config.num_blocks - _BUILT_BLOCKS) * (most - fewer)
    try:
        encoder = build_encoder(config, inputs=inputs, device="meta")
    except (RuntimeError, TypeError) as error:
        if "overflow" not in str(error).lower():
            raise
        raise EncoderTooLargeError("the encoder has a weight of more than 2^63 bytes") from None
    return sum(parameter.numel() for parameter in encoder.parameters())
