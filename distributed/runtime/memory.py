"""Memory: what there is for a rank, what a process used at its peak, and a word when it ran out."""

import gc
import os
import resource
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import torch

from longplay.distributed.runtime.errors import OutOfMemoryError
from longplay.distributed.runtime.world import World


def available_memory(device_type: str, local_ranks: int) -> tuple[int | None, str]:
    """Memory of one rank here, and what it is a share of; None where it cannot be told."""
    if device_type == "cuda":
        if not torch.cuda.is_available():
            return None, "no GPU here"
        return torch.cuda.get_device_properties(0).total_memory, "this GPU"
    try:
        lines = dict(line.split(":") for line in Path("/proc/meminfo").read_text().splitlines())
        available = 1024 * int(lines["MemAvailable"].split()[0])
        # What this process holds is in use already, and in the plan too.
        mine = os.sysconf("SC_PAGE_SIZE") * int(Path("/proc/self/statm").read_text().split()[1])
    except (OSError, KeyError, ValueError):
        return None, "unknown"
    share = f" over {local_ranks} ranks" if local_ranks > 1 else ""
    return available // local_ranks + mine, f"available here{share}"


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
            "--evaluation.rows_per_batch, raise --engine.gradient_accumulation_steps, or start more ranks; "
            "`longplay plan` says what fits"
        ) from error
