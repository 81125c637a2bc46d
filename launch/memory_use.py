"""How much memory a process has used at its peak, and a fresh start for that number."""

import gc
import resource
from pathlib import Path

import torch

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
