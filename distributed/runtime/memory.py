"""The memory available to a rank, its peak use, and one exception for all out-of-memory errors."""

import gc
import resource
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import psutil
import torch

from longplay.distributed.runtime.errors import OutOfMemoryError
from longplay.distributed.runtime.free_memory import free_memory
from longplay.distributed.runtime.world import World


def available_memory(device_type: str, local_ranks: int) -> tuple[int | None, str]:
    """Return the memory of one rank on this machine in bytes, and a description of it.

    Args:
        device_type: "cpu" or "cuda".
        local_ranks: ranks that share this machine's memory.
    Returns:
        The bytes, or None if they are unknown; and a description such as "available here over 2 ranks".
    """
    if device_type == "cuda":
        if not torch.cuda.is_available():
            return None, "no GPU here"
        return torch.cuda.get_device_properties(torch.cuda.current_device()).total_memory, "this GPU"
    available, limited = free_memory()
    mine = psutil.Process().memory_info().rss  # estimates include what this process already holds
    share = f" over {local_ranks} ranks" if local_ranks > 1 else ""
    where = "under the limit of this job or container" if limited else "here"
    return available // local_ranks + mine, f"available {where}{share}"


def peak_memory_gib(world: World) -> float:
    """Return the peak memory of this rank in GiB: of its GPU, or of the process on a CPU."""
    if world.device.type == "cuda":
        return torch.cuda.max_memory_allocated() / 2**30
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20


def reset_peak_memory() -> None:
    """Reset the peak to the memory in use now, including memory that the allocator keeps."""
    gc.collect()
    if torch.cuda.is_initialized():
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats()
    try:
        Path("/proc/self/clear_refs").write_text("5")
    except OSError:
        return  # not Linux, or not permitted: the peak remains that of the whole process


@contextmanager
def explain_out_of_memory(what: str) -> Iterator[None]:
    """Convert every allocator's out-of-memory error in the context to an `OutOfMemoryError` with advice.

    Args:
        what: the work in the context, for the message.
    Raises:
        OutOfMemoryError: the work does not fit in memory.
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
            "--evaluation.rows_per_batch, raise --engine.gradient_accumulation_steps, or start more ranks; "
            "`longplay plan` estimates what fits"
        ) from error
