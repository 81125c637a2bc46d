"""How much memory a process has used at its peak, how to count anew, and a word when it ran out."""

import gc
import resource
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import torch

from longplay.distributed.errors import OutOfMemoryError
from longplay.distributed.world import World


def peak_memory_gib(world: World) -> float:
    """Peak memory of this rank: of the GPU where there is one, else of the process."""
    if world.device.type == "cuda":
        return torch.cuda.max_memory_allocated() / 2**30
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20


def forget_peak_memory() -> None:
    """Let `peak_memory_gib` count from what is in use now; memory that the allocator kept counts as used."""
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats()
    try:
        Path("/proc/self/clear_refs").write_text("5")
    except OSError:
        return  # not Linux, or not allowed: the peak stays that of all the process did


@contextmanager
def memory_is_enough_for(what: str) -> Iterator[None]:
    """Turns the allocators' several ways to fail into one.

    Raises:
        OutOfMemoryError: `what` does not fit into memory.
    """
    try:
        yield
    except (MemoryError, RuntimeError) as error:
        if not isinstance(error, MemoryError | torch.OutOfMemoryError) and "allocate memory" not in str(
            error
        ):
            raise
        cause = (str(error) or type(error).__name__).splitlines()[0]
        raise OutOfMemoryError(
            f"out of memory in {what} ({cause}); lower --data.rows_per_step or "
            "--evaluation.rows_per_batch, raise --engine.accumulation, or start more ranks; "
            "`longplay plan` says what fits"
        ) from error
