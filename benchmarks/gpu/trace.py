"""Summarize a profile of training steps on a GPU: kernels by part of the step, and waits of the host."""

from __future__ import annotations

import gzip
import json
import tempfile
from collections import Counter, defaultdict
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch.profiler import ProfilerActivity, profile

from longplay.distributed.runtime.phases import phase_name

_KERNELS = ("kernel", "gpu_memcpy", "gpu_memset")
_SHOWN = 8  # kernels of each part
Event = dict[str, Any]


def print_trace(work: Callable[[], object], num_steps: int, out: Path | None) -> None:
    """Profile `work` and print a summary per step.

    Args:
        work: runs `num_steps` training steps.
        num_steps: divides all figures.
        out: folder for `trace.json.gz`, for Chrome's trace viewer; None = not kept.
    """
    activities = [ProfilerActivity.CPU]
    if torch.cuda.is_available():
        activities.append(ProfilerActivity.CUDA)
    with profile(activities=activities) as profiled:
        work()
        if torch.cuda.is_available():
            torch.cuda.synchronize()
    with tempfile.TemporaryDirectory() as scratch:
        folder = out or Path(scratch)
        folder.mkdir(parents=True, exist_ok=True)
        path = folder / "trace.json.gz"
        profiled.export_chrome_trace(str(path))
        with gzip.open(path) as file:
            events = [event for event in json.load(file)["traceEvents"] if event.get("ph") == "X"]
    for line in summarize(events, num_steps):
        print(line)


def summarize(events: list[Event], num_steps: int) -> list[str]:
    """Return the lines of the summary of a profile's events."""
    parts = sorted(
        (event for event in events if event.get("cat") == "user_annotation" and phase_name(event["name"])),
        key=lambda event: event["dur"],  # the innermost part first
    )
    calls = [event for event in events if event.get("cat") in ("cuda_runtime", "cuda_driver")]
    kernels = [event for event in events if event.get("cat") in _KERNELS]
    return [
        *_host_lines(parts, num_steps),
        *_busy_lines(kernels, num_steps),
        *_wait_lines(calls, parts, num_steps),
        *_kernel_lines(kernels, calls, parts, num_steps),
    ]


def _host_lines(parts: list[Event], num_steps: int) -> list[str]:
    spent: Counter[str] = Counter()
    for part in parts:
        spent[part["name"]] += part["dur"]
    return [f"{name:<28} host {time / 1e3 / num_steps:8.2f} ms" for name, time in spent.most_common()]


def _busy_lines(kernels: list[Event], num_steps: int) -> list[str]:
    if not kernels:
        return ["no kernels: the steps ran on a CPU"]
    busy = sum(event["dur"] for event in kernels)
    begin = min(event["ts"] for event in kernels)
    span = max(event["ts"] + event["dur"] for event in kernels) - begin
    number = len(kernels) / num_steps
    return [
        f"GPU: {number:.0f} kernels, {busy / 1e3 / num_steps:.2f} of {span / 1e3 / num_steps:.2f} ms busy"
    ]


def _wait_lines(calls: list[Event], parts: list[Event], num_steps: int) -> list[str]:
    """Return one line for each kind of call in which the host waits for the GPU."""
    number: Counter[tuple[str, str]] = Counter()
    time: Counter[tuple[str, str]] = Counter()
    for call in calls:
        if "Synchronize" in call["name"]:
            key = call["name"], _part_at(call["ts"], parts)
            number[key] += 1
            time[key] += call["dur"]
    return [
        f"wait {name} in {part}: {count / num_steps:.1f} times, {time[name, part] / 1e3 / num_steps:.2f} ms"
        for (name, part), count in number.most_common()
    ]


def _kernel_lines(kernels: list[Event], calls: list[Event], parts: list[Event], num_steps: int) -> list[str]:
    """Return the kernels of each part, by the call that launched them."""
    launches = {call["args"]["correlation"]: call for call in calls if "correlation" in call.get("args", {})}
    times: defaultdict[str, Counter[str]] = defaultdict(Counter)
    for kernel in kernels:
        call = launches.get(kernel.get("args", {}).get("correlation"))
        part = "unknown" if call is None else _part_at(call["ts"], parts)
        times[part][kernel["name"]] += kernel["dur"]
    lines = []
    for part, by_name in sorted(times.items(), key=lambda item: -item[1].total()):
        lines.append(f"{part:<28} GPU  {by_name.total() / 1e3 / num_steps:8.2f} ms")
        shown = by_name.most_common(_SHOWN)
        lines += [f"    {time / 1e3 / num_steps:8.3f} ms  {name[:90]}" for name, time in shown]
    return lines


def _part_at(time: float, parts: list[Event]) -> str:
    """Return the innermost part of a step at a time of the host."""
    inside = (part["name"] for part in parts if part["ts"] <= time <= part["ts"] + part["dur"])
    return next(inside, "between parts")
