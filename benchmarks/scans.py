"""Compare the implementations of the Mamba recurrence: time and memory of forward and backward.

    python -m benchmarks.scans

Mamba-1: the reference (autograd through a loop), the chunked form, C++, and on a GPU mamba-ssm's kernel.
Mamba-2: the chunked matrix form. Each measurement is the whole mixer, with projections, convolution and a
segment reset every 150 slots.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable

import torch
from torch.profiler import ProfilerActivity, profile

from benchmarks.measure import interleaved, machine, median, seconds
from benchmarks.plan import allocation_peak
from longplay.models.base.segments import SegmentLayout
from longplay.models.mixers.mamba import Mamba
from longplay.models.mixers.mamba2 import Mamba2
from longplay.models.scans import cpp as scan_cpp
from longplay.models.scans import kernel as scan_kernel

_WIDTH, _STATE, _SEGMENT = 64, 32, 150
_REF_LENGTH = 300  # the reference's backward is quadratic in the length


def main() -> None:
    """Print a line per implementation and length."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--lengths", type=int, nargs="+", default=[200, 1000, 5000])
    parser.add_argument("--slots", type=int, default=10_000, help="slots per batch: rows times length")
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    torch.manual_seed(0)
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    print(machine())
    print(f"{'':<22}{'us/slot':>10}{'vs chunk':>10}{'peak MiB':>10}")
    for length in args.lengths:
        rows = max(1, args.slots // length)
        works = {name: _work(mixer, rows, length, device) for name, mixer in _mixers(length, device).items()}
        times = interleaved(
            {name: lambda w=work: seconds(w) for name, work in works.items()}, repeats=args.repeats
        )
        chunk = median(times["chunk"])
        for name, values in times.items():
            cost = 1e6 * median(values) / (rows * length)
            peak = _peak_mib(works[name], device)
            print(f"L={length:<7,}{name:<13}{cost:10.2f}{median(values) / chunk:10.2f}{peak:10.0f}")


def _mixers(length: int, device: torch.device) -> dict[str, torch.nn.Module]:
    mixers: dict[str, torch.nn.Module] = {"chunk": Mamba(_WIDTH, d_state=_STATE, scan="chunk")}
    if device.type == "cpu" and scan_cpp.is_available(_STATE):
        mixers["C++"] = Mamba(_WIDTH, d_state=_STATE, scan="cpp")
    if device.type == "cuda" and scan_kernel.is_available(torch.float32, _STATE):
        mixers["kernel"] = Mamba(_WIDTH, d_state=_STATE, scan="kernel")
    if length <= _REF_LENGTH:
        mixers["reference"] = Mamba(_WIDTH, d_state=_STATE, scan="ref")
    mixers["Mamba-2"] = Mamba2(_WIDTH, d_state=_STATE, headdim=32)
    return {name: mixer.to(device) for name, mixer in mixers.items()}


def _work(mixer: torch.nn.Module, rows: int, length: int, device: torch.device) -> Callable[[], None]:
    """Return a function that runs forward and backward of one batch."""
    x = torch.randn(rows, length, _WIDTH, device=device, requires_grad=True)
    segment = torch.arange(length, device=device, dtype=torch.int32) // _SEGMENT
    seq_idx = segment.expand(rows, length).contiguous()

    def work() -> None:
        mixer(x, SegmentLayout(seq_idx)).square().mean().backward()
        if device.type == "cuda":
            torch.cuda.synchronize()

    return work


def _peak_mib(work: Callable[[], None], device: torch.device) -> float:
    """Return the peak allocation of one call in MiB."""
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        work()
        return (torch.cuda.max_memory_allocated() - before) / 2**20
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as profiled:
        work()
    return allocation_peak(profiled) / 2**20


if __name__ == "__main__":
    main()
