"""Sum a loss over chunks of targets, to bound the memory of the candidates' scores."""

from collections.abc import Callable, Sequence

import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from longplay.models.losses.base import LossCost, LossLoad

# float32 elements of a chunk's largest temporary, by device type: 16 and 256 MiB. A GPU needs large kernels.
CHUNK_ELEMENTS = {"cpu": 1 << 22, "cuda": 1 << 26}


def sum_of_chunks(
    function: Callable[..., Tensor], per_target: Sequence[Tensor], shared: Tensor, elements_per_target: int
) -> Tensor:
    """Sum `function(*per_target, shared)` over chunks of targets of about CHUNK_ELEMENTS elements.

    With more than one chunk, the intermediates are recomputed in the backward instead of saved.

    Args:
        function: returns the sum over a chunk of targets, a float32 scalar.
        per_target: tensors (V, ...), split into chunks.
        shared: tensor passed whole to every chunk.
        elements_per_target: size of the function's largest temporary, in elements per target.

    Returns:
        A float32 scalar.
    """
    chunk_size = max(1, CHUNK_ELEMENTS[shared.device.type] // max(1, elements_per_target))
    if len(per_target[0]) <= chunk_size:
        return function(*per_target, shared)
    total = shared.new_zeros((), dtype=torch.float32)
    for chunk in zip(*(tensor.split(chunk_size) for tensor in per_target), strict=True):
        # The function draws no random numbers, so the RNG state need not be preserved.
        part = checkpoint(function, *chunk, shared, use_reentrant=False, preserve_rng_state=False)
        assert isinstance(part, Tensor)
        total = total + part
    return total


def cost_in_chunks(load: LossLoad, elements_per_target: int) -> LossCost | None:
    """Return the cost of `sum_of_chunks` with more than one chunk, or None if one chunk suffices."""
    chunk_elements = CHUNK_ELEMENTS[load.device_type]
    if load.num_targets * elements_per_target <= chunk_elements:
        return None
    hidden_bytes = 4 * load.num_targets * load.width
    return LossCost(saved_bytes=int(3 * hidden_bytes), working_bytes=int(4.25 * 4 * chunk_elements))
