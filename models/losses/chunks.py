"""Sums over targets in chunks, so that the scores of many candidates never exist all at once."""

from collections.abc import Callable, Sequence

import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from longplay.models.losses.base import LossCost, LossLoad

CHUNK_ELEMENTS = 1 << 22  # float32 elements of the largest temporary of a chunk: 16 MiB


def sum_of_chunks(
    function: Callable[..., Tensor], per_target: Sequence[Tensor], shared: Tensor, elements_per_target: int
) -> Tensor:
    """Sum `function(*per_target, shared)` over chunks of targets of about CHUNK_ELEMENTS elements each.

    If there are several chunks, the backward recomputes their intermediates instead of keeping them.

    Args:
        function: returns the float32 sum over the targets that it is given.
        per_target: tensors (V, ...) that are cut into chunks.
        shared: a tensor that every chunk uses whole.
        elements_per_target: elements per target of the function's largest temporary.
    """
    chunk_size = max(1, CHUNK_ELEMENTS // max(1, elements_per_target))
    if len(per_target[0]) <= chunk_size:
        return function(*per_target, shared)
    total = shared.new_zeros((), dtype=torch.float32)
    for chunk in zip(*(tensor.split(chunk_size) for tensor in per_target), strict=True):
        # The function draws no random numbers, so that there is no generator state to keep.
        part = checkpoint(function, *chunk, shared, use_reentrant=False, preserve_rng_state=False)
        assert isinstance(part, Tensor)
        total = total + part
    return total


def cost_in_chunks(load: LossLoad, elements_per_target: int) -> LossCost | None:
    """Return the cost of a `sum_of_chunks` of several chunks; None if one chunk holds all targets."""
    if load.num_targets * elements_per_target <= CHUNK_ELEMENTS:
        return None
    hidden_bytes = 4 * load.num_targets * load.width
    return LossCost(saved_bytes=int(3 * hidden_bytes), working_bytes=int(4.25 * 4 * CHUNK_ELEMENTS))
