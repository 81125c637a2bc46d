"""How the C library keeps memory that PyTorch has freed on a CPU."""

import ctypes
import os

# malloc.h
_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD = -1, -3
_LARGEST_MMAP_THRESHOLD = 32 << 20  # glibc takes no larger one
_KEPT = (1 << 31) - 1


def keep_freed_memory() -> None:
    """Have freed memory kept for the next tensor, up to 2 GiB, instead of given back to the system.

    A training step allocates and frees the same few hundred megabytes each time. By glibc's defaults much of
    it goes back to the system and comes again page by page, each zeroed: some 6 % of a step's time.
    Does nothing where the environment sets these thresholds, or where the C library is another one.
    """
    if {"MALLOC_TRIM_THRESHOLD_", "MALLOC_MMAP_THRESHOLD_", "GLIBC_TUNABLES"} & os.environ.keys():
        return
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is not None:
        mallopt(_M_MMAP_THRESHOLD, _LARGEST_MMAP_THRESHOLD)
        mallopt(_M_TRIM_THRESHOLD, _KEPT)
