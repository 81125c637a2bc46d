"""Settings of glibc's allocator for training on a CPU."""

import ctypes
import os

# malloc.h
_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD = -1, -3
_LARGEST_MMAP_THRESHOLD = 32 << 20  # the largest that glibc accepts
_KEPT = (1 << 31) - 1


def keep_freed_memory() -> None:
    """Make the allocator keep up to 2 GiB of freed memory instead of returning it to the system.

    Every training step allocates and frees the same few hundred megabytes. By default glibc returns much of
    this memory, and the system then zeroes each page again, which takes about 6 % of a step. Does nothing if
    the environment sets these thresholds or the C library is not glibc.
    """
    if {"MALLOC_TRIM_THRESHOLD_", "MALLOC_MMAP_THRESHOLD_", "GLIBC_TUNABLES"} & os.environ.keys():
        return
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is not None:
        mallopt(_M_MMAP_THRESHOLD, _LARGEST_MMAP_THRESHOLD)
        mallopt(_M_TRIM_THRESHOLD, _KEPT)
