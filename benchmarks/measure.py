"""Shared by the benchmarks: interleaved timing, and a line that describes the machine."""

from __future__ import annotations

import os
import platform
import statistics
import time
from collections.abc import Callable, Mapping
from importlib.metadata import version
from pathlib import Path

import torch


def interleaved(pieces: Mapping[str, Callable[[], float]], *, repeats: int) -> dict[str, list[float]]:
    """Run the functions alternately (a, b, c, a, b, c, ...), after a warm-up round that is not recorded.

    Args:
        pieces: name -> function that returns a measurement, such as seconds.
    Returns:
        name -> the `repeats` measurements.
    """
    results: dict[str, list[float]] = {name: [] for name in pieces}
    for number in range(repeats + 1):
        for name, piece in pieces.items():
            result = piece()
            if number:
                results[name].append(result)
    return results


def seconds(work: Callable[[], object]) -> float:
    """Return the seconds that `work` takes."""
    began = time.perf_counter()
    work()
    return time.perf_counter() - began


def median(values: list[float]) -> float:
    """Return the median."""
    return statistics.median(values)


def spread(values: list[float]) -> str:
    """Return the smallest and largest value relative to the median, as "-3 % +5 %"."""
    middle = median(values)
    return f"{100 * (min(values) / middle - 1):+.0f} % {100 * (max(values) / middle - 1):+.0f} %"


def machine() -> str:
    """Describe the processor, cores, threads and versions of this machine."""
    names = [f"{name} {version(name)}" for name in ("torch", "deepspeed", "numpy")]
    if torch.cuda.is_available():
        names.insert(0, torch.cuda.get_device_name())
    cores = len(os.sched_getaffinity(0))
    return (
        f"{_cpu_model()}, {cores} cores, {torch.get_num_threads()} threads, "
        f"Python {platform.python_version()}, {', '.join(names)}"
    )


def _cpu_model() -> str:
    lines = Path("/proc/cpuinfo").read_text().splitlines() if Path("/proc/cpuinfo").is_file() else []
    models = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return models[0] if models else platform.machine()
