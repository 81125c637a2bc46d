"""Time and memory of work on a device."""

from __future__ import annotations

import time
from collections.abc import Callable

import torch

from benchmarks.measure import median


class Timer:
    """Time work on a device."""

    def __init__(self, device: torch.device, repeats: int) -> None:
        self.device, self.repeats = device, repeats

    def __call__(self, work: Callable[[], object]) -> float:
        """Return the median seconds of `work`, after one warm-up call."""
        times = []
        for _ in range(self.repeats + 1):
            self.wait()
            began = time.perf_counter()
            work()
            self.wait()
            times.append(time.perf_counter() - began)
        return median(times[1:])

    def wait(self) -> None:
        """Wait for the GPU."""
        if self.device.type == "cuda":
            torch.cuda.synchronize()

    def reset_peak(self) -> None:
        """Reset the peak of `peak_bytes`."""
        if self.device.type == "cuda":
            torch.cuda.empty_cache()
            torch.cuda.reset_peak_memory_stats()

    def peak_bytes(self) -> int:
        """Return the peak of device memory in bytes; 0 without a GPU."""
        return torch.cuda.max_memory_allocated() if self.device.type == "cuda" else 0
