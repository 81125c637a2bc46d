"""Compare the implementations of the Mamba recurrence: time and memory of forward and backward.

    python -m benchmarks.scans
    python -m benchmarks.scans --small
    python -m benchmarks.scans --tilings 8x128x8 16x64x4

On a GPU: mamba-ssm's kernel, the Triton kernels and the chunked form in fp32 and bf16, at E=128, N=32 and
320k slots. "scan" is the recurrence with softplus, skip and gate, "convolution" includes its SiLU, "mixer" is
the whole Mamba mixer. --tilings adds divisions of the Triton scan: slots x channels of a tile x tiles of a
chunk. What needs a package that is not installed, mamba-ssm or causal-conv1d, is left out.

On a CPU: the mixer with the reference (autograd through a loop), the chunked form and C++, and Mamba-2.

A segment starts every 150 slots. --small runs every line on a small problem, on any device.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Sequence
from functools import partial

import torch
from torch import Tensor
from torch.profiler import ProfilerActivity, profile

from benchmarks.measure import interleaved, machine, median, seconds
from benchmarks.plan import allocation_peak
from longplay.models.base.config import ScanName
from longplay.models.base.segments import SegmentLayout
from longplay.models.mixers.causal_conv import KERNEL as CONV_KERNEL
from longplay.models.mixers.causal_conv import causal_conv_silu
from longplay.models.mixers.elementwise import skip_and_gate, softplus
from longplay.models.mixers.mamba import Mamba
from longplay.models.mixers.mamba2 import Mamba2
from longplay.models.scans import cpp as scan_cpp
from longplay.models.scans import kernel as scan_kernel
from longplay.models.scans.selective_scan import selective_scan
from longplay.models.scans.triton_scan import Tiling, selective_scan_triton
from longplay.native.triton_runtime import can_run_triton

_WIDTH, _STATE, _SEGMENT = 64, 32, 150
_REF_LENGTH = 300  # the reference's backward is quadratic in the length
_LAYER_SHAPES = ((64, 5000), (1280, 250))  # rows, length
_SMALL_SHAPES = ((2, 200), (10, 40))


def main() -> None:
    """Print a line per implementation and shape."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--lengths", type=int, nargs="+", default=[200, 1000, 5000], help="on a CPU")
    parser.add_argument(
        "--slots", type=int, default=10_000, help="slots per batch on a CPU: rows times length"
    )
    parser.add_argument("--tilings", type=_tiling, nargs="+", default=[], help="on a GPU, such as 8x128x8")
    parser.add_argument("--small", action="store_true", help="both tables, on a small problem")
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    torch.manual_seed(0)
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    print(machine())
    if args.small:
        args.lengths, args.slots, args.repeats = [40, 400], 400, 1
    if args.small or device.type == "cuda":
        shapes = _SMALL_SHAPES if args.small else _LAYER_SHAPES
        _compare_layers(shapes, args.tilings, args.repeats, device)
    if args.small or device.type == "cpu":
        _compare_mixers(args.lengths, args.slots, args.repeats, device)


# ---------------------------------------------------------------------- one layer, on a GPU


def _compare_layers(
    shapes: tuple[tuple[int, int], ...], tilings: list[Tiling], repeats: int, device: torch.device
) -> None:
    """Print the time of scan and mixer, and the peak memory of forward and backward."""
    print(f"E={2 * _WIDTH} N={_STATE}; M slots/s and peak MiB of forward and backward")
    print(f"{'':<52}{'fwd ms':>9}{'both ms':>9}{'M slots/s':>11}{'peak MiB':>10}")
    for rows, length in shapes:
        for dtype in (torch.float32, torch.bfloat16):
            for name, (forward, leaves) in _layers(rows, length, dtype, tilings, device).items():
                label = f"{rows:,} x {length:,} {str(dtype).removeprefix('torch.')} {name}"
                _time_layer(label, forward, leaves, rows * length, repeats, device)


def _time_layer(
    label: str,
    forward: Callable[[], Tensor],
    leaves: Sequence[Tensor],
    slots: int,
    repeats: int,
    device: torch.device,
) -> None:
    gradient = torch.randn_like(forward())
    works = {
        "forward": partial(_finish, forward, device),
        "both": partial(_finish, lambda: torch.autograd.grad(forward(), leaves, gradient), device),
    }
    times = interleaved({name: partial(seconds, work) for name, work in works.items()}, repeats=repeats)
    alone, both = median(times["forward"]), median(times["both"])
    peak = _peak_mib(works["both"], device)
    print(f"{label:<52}{1e3 * alone:9.2f}{1e3 * both:9.2f}{slots / both / 1e6:11.2f}{peak:10.0f}", flush=True)


def _finish(work: Callable[[], object], device: torch.device) -> None:
    work()
    if device.type == "cuda":
        torch.cuda.synchronize()


def _layers(
    rows: int, length: int, dtype: torch.dtype, tilings: list[Tiling], device: torch.device
) -> dict[str, tuple[Callable[[], Tensor], Sequence[Tensor]]]:
    """Return the forward and the leaves of the scan and the mixer with each backend that runs on `device`."""
    backends: list[ScanName] = ["chunk"]
    if device.type == "cpu" and scan_cpp.is_available(_STATE):
        backends.append("cpp")
    if device.type == "cuda" and scan_kernel.KERNEL.find() is not None:
        backends.append("kernel")
    if device.type == "cuda" and can_run_triton(device.type):
        backends.append("triton")
    layout = _layout(rows, length, device)
    inputs = _scan_inputs(rows, length, dtype, device)
    layers: dict[str, tuple[Callable[[], Tensor], Sequence[Tensor]]] = {}
    for backend in backends:
        layers[f"scan {backend}"] = partial(_scan, *inputs, layout.starts, backend), inputs
    if "triton" in backends:
        for tiling in tilings:
            name = f"scan triton {tiling.slots}x{tiling.channels}x{tiling.tiles}"
            layers[name] = partial(selective_scan_triton, *inputs, layout.starts, tiling), inputs
    x = torch.randn(rows, length, _WIDTH, device=device, requires_grad=True)
    for backend in backends:
        if backend == "kernel" and CONV_KERNEL.find() is None:
            continue
        mixer = Mamba(_WIDTH, d_state=_STATE, scan=backend).to(device)
        conv = _conv_inputs(mixer, rows, length, dtype)
        layers[f"convolution {backend}"] = partial(causal_conv_silu, *conv, layout, backend), conv
        layers[f"mixer {backend}"] = partial(_run_mixer, mixer, x, layout, dtype), [x, *mixer.parameters()]
    return layers


def _scan(
    u: Tensor, dt: Tensor, A: Tensor, B: Tensor, C: Tensor, D: Tensor, z: Tensor, dt_bias: Tensor,
    starts: Tensor, backend: ScanName,
) -> Tensor:  # fmt: skip
    """Compute softplus, scan, skip and gate as the mixer does."""
    if backend == "triton":
        return selective_scan_triton(u, dt, A, B, C, D, z, dt_bias, starts)
    steps = softplus(dt.float(), dt_bias)
    y = selective_scan(u.float(), steps, A, B.float(), C.float(), starts, backend)
    return skip_and_gate(y.to(u.dtype), u, D.to(u.dtype), z)


def _run_mixer(mixer: Mamba, x: Tensor, layout: SegmentLayout, dtype: torch.dtype) -> Tensor:
    with torch.autocast(x.device.type, torch.bfloat16, enabled=dtype == torch.bfloat16):
        return mixer(x, layout)


def _conv_inputs(mixer: Mamba, rows: int, length: int, dtype: torch.dtype) -> list[Tensor]:
    """Return leaves x, the first half of a projection's output, weight and bias."""
    weight, bias = mixer.conv1d.weight.detach().squeeze(1), mixer.conv1d.bias
    assert bias is not None
    x = torch.randn(rows, length, 4 * _WIDTH, device=weight.device, dtype=dtype).chunk(2, dim=2)[0]
    return [x.requires_grad_(), *(each.detach().to(dtype).requires_grad_() for each in (weight, bias))]


def _scan_inputs(rows: int, length: int, dtype: torch.dtype, device: torch.device) -> list[Tensor]:
    """Return leaves u, dt, A, B, C, D, z, dt_bias."""
    channels = 2 * _WIDTH
    mixer = Mamba(_WIDTH, d_state=_STATE)

    def normal(width: int) -> Tensor:
        return torch.randn(rows, length, width, device=device, dtype=dtype)

    u, dt, z, B, C = (normal(width) for width in (channels, channels, channels, _STATE, _STATE))
    A = -mixer.A_log.detach().exp()
    A, D, dt_bias = (tensor.detach().to(device) for tensor in (A, mixer.D, mixer.dt_proj.bias))
    return [tensor.requires_grad_() for tensor in (u, dt, A, B, C, D, z, dt_bias)]


def _tiling(text: str) -> Tiling:
    slots, channels, tiles = map(int, text.split("x"))
    return Tiling(slots=slots, channels=channels, tiles=tiles)


# ---------------------------------------------------------------------- whole mixers, on a CPU


def _compare_mixers(lengths: list[int], slots: int, repeats: int, device: torch.device) -> None:
    """Print the time and peak memory of forward and backward, relative to the chunked form."""
    print(f"{'':<22}{'us/slot':>10}{'vs chunk':>10}{'peak MiB':>10}")
    for length in lengths:
        rows = max(1, slots // length)
        works = {name: _work(mixer, rows, length, device) for name, mixer in _mixers(length, device).items()}
        times = interleaved({name: partial(seconds, work) for name, work in works.items()}, repeats=repeats)
        chunk = median(times["chunk"])
        for name, values in times.items():
            cost = 1e6 * median(values) / (rows * length)
            peak = _peak_mib(works[name], device)
            print(f"L={length:<7,}{name:<13}{cost:10.2f}{median(values) / chunk:10.2f}{peak:10.0f}")


def _mixers(length: int, device: torch.device) -> dict[str, torch.nn.Module]:
    mixers: dict[str, torch.nn.Module] = {"chunk": Mamba(_WIDTH, d_state=_STATE, scan="chunk")}
    if device.type == "cpu" and scan_cpp.is_available(_STATE):
        mixers["C++"] = Mamba(_WIDTH, d_state=_STATE, scan="cpp")
    if length <= _REF_LENGTH:
        mixers["reference"] = Mamba(_WIDTH, d_state=_STATE, scan="ref")
    mixers["Mamba-2"] = Mamba2(_WIDTH, d_state=_STATE, headdim=32)
    return {name: mixer.to(device) for name, mixer in mixers.items()}


def _work(mixer: torch.nn.Module, rows: int, length: int, device: torch.device) -> Callable[[], None]:
    """Return a function that runs forward and backward of one batch."""
    x = torch.randn(rows, length, _WIDTH, device=device, requires_grad=True)
    layout = _layout(rows, length, device)
    return partial(_finish, lambda: mixer(x, layout).square().mean().backward(), device)


def _layout(rows: int, length: int, device: torch.device) -> SegmentLayout:
    segment = torch.arange(length, device=device, dtype=torch.int32) // _SEGMENT
    return SegmentLayout(segment.expand(rows, length).contiguous())


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
