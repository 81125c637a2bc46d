"""`longplay train --profile`: the time of a step by part, as a table and as a trace for Chrome."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Any

from torch.profiler import ProfilerActivity, profile

from longplay.distributed.runtime.phases import PHASES, STEP, phase_name
from longplay.distributed.runtime.world import World

_SKIPPED_STEPS = 5  # first steps of the process, in which allocators, kernels and caches are cold
# Prefixes of PyTorch's names for collectives in a profile: on the thread that waits for gloo, and on the GPU.
_COLLECTIVES = ("gloo:", "nccl:", "ncclDevKernel", "ncclKernel")


class StepProfile:
    """Profile a few steps once, after the first steps of the process.

    Args:
        folder: each rank writes `rank-R.json.gz` into it; it is created after the last profiled step.
        num_steps: number of steps to profile; 0 = no profile.
    """

    def __init__(self, folder: Path, world: World, num_steps: int) -> None:
        self._folder, self._world, self._num_steps = folder, world, num_steps
        self._done = 0
        self._profile: profile | None = None

    def step_done(self) -> list[str]:
        """Count a step; after the last profiled one, return the table and the path of the trace as lines."""
        self._done += 1
        if self._num_steps and self._done == _SKIPPED_STEPS:
            activities = [ProfilerActivity.CPU]
            if self._world.device.type == "cuda":
                activities.append(ProfilerActivity.CUDA)
            self._profile = profile(activities=activities)
            self._profile.start()
        if self._profile is not None and self._done == _SKIPPED_STEPS + self._num_steps:
            return self._finish(self._profile)
        return []

    def close(self) -> list[str]:
        """Stop at the end of the run; return a line if there were too few steps to profile."""
        needed = _SKIPPED_STEPS + self._num_steps
        if not self._num_steps or self._done >= needed:
            return []
        if self._profile is not None:
            self._profile.stop()
        return [f"profile  skipped: needs {needed} steps, the run had {self._done}"]

    def _finish(self, profiled: profile) -> list[str]:
        profiled.stop()
        self._profile = None
        self._folder.mkdir(parents=True, exist_ok=True)
        trace = self._folder / f"rank-{self._world.rank}.json.gz"
        profiled.export_chrome_trace(str(trace))
        lines = phase_table(profiled.events() or [], self._num_steps)
        return [*lines, f"profile  {trace}; open it in chrome://tracing or ui.perfetto.dev"]


def phase_table(events: Iterable[Any], num_steps: int) -> list[str]:
    """Return the mean milliseconds of each part of a step, as the lines of a table.

    On a GPU a third column has the time of its kernels, which overlaps with the time of the host.
    The time of communication is included in the other rows.

    Args:
        events: the events of a profile.
        num_steps: number of profiled steps.
    """
    host: dict[str, float] = {}
    device: dict[str, float] = {}
    for event in events:
        name = phase_name(event.name)
        if name is None and event.name.startswith(_COLLECTIVES):
            name = "communication"
        if name is not None:
            on_device = event.device_type.name == "CUDA"
            into = device if on_device else host
            into[name] = into.get(name, 0.0) + event.time_range.elapsed_us() / 1e3 / num_steps
    whole = host.get(STEP, 0.0)
    host["the rest"] = whole - sum(host.get(name, 0.0) for name in PHASES)
    lines = [f"{f'mean of {num_steps} steps':<26}{'ms':>10}{'share':>9}" + ("   GPU ms" if device else "")]
    for name in (*PHASES, "the rest", STEP, "communication"):
        if name in host or name in device:
            shown = "communication (included)" if name == "communication" else name
            share = f"{100 * host.get(name, 0.0) / whole:8.1f}%" if whole else ""
            line = f"{shown:<26}{host.get(name, 0.0):10.2f}{share:>9}"
            lines.append(line + (f"{device.get(name, 0.0):9.2f}" if device else ""))
    return lines
