"""Mamba-1's selective scan with softplus, skip and gate in Triton, with exact resets at segment starts.

    dt_t = softplus(raw dt_t + dt_bias)        h_t = keep_t * exp(dt_t A) h_{t-1} + dt_t u_t B_t
    y_t = C_t . h_t                            out_t = (y_t + D u_t) silu(z_t)

All arithmetic is float32. Rows are cut into chunks that run in parallel:

1. `chunk_sums` computes the state at each chunk's end, given a zero state before the chunk.
2. `chain_chunks` computes the state before each chunk, from chunk to chunk.
3. `chunk_forward` computes the outputs.

The backward has the same passes from the end, with `chunk_backward` as the third. Rows of one chunk need only
the third. There are no atomics: PyTorch adds the partial sums of the programs, so results repeat bitwise.

With TRITON_INTERPRET=1 the kernels run on the CPU.
"""

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from longplay.native.triton_runtime import can_run_triton, power_of_two

DTYPES = (torch.float32, torch.bfloat16)  # of u, dt, B, C and z
_TILE_SLOTS, _TILE_CHANNELS = 16, 128
_FEWEST_TILES = 4  # of a chunk
_ENOUGH_PROGRAMS = 1056  # 8 for each of the 132 multiprocessors of an H100
_CHAIN_BLOCK, _CHAIN_WARPS = 256, 2
_OPTIONS = dict(enable_fp_fusion=True)  # Triton 3.9 warns that its default will change


@dataclass(frozen=True, kw_only=True)
class Tiling:
    """How rows are divided among programs.

    Attributes:
        slots: Slots of a tile, a power of two.
        channels: Channels of a program, a power of two.
        tiles: Tiles of a chunk.
    """

    slots: int = _TILE_SLOTS
    channels: int = _TILE_CHANNELS
    tiles: int = _FEWEST_TILES

    @classmethod
    def choose(cls, num_rows: int, length: int, channels: int) -> "Tiling":
        """Return the tiling with the longest chunks that still give enough programs to fill a GPU."""
        programs_per_chunk = max(1, num_rows * _ceil_div(channels, _TILE_CHANNELS))
        chunks = _ceil_div(_ENOUGH_PROGRAMS, programs_per_chunk)
        return cls(tiles=max(_FEWEST_TILES, _ceil_div(length, _TILE_SLOTS * chunks)))

    def fit(self, length: int, channels: int) -> "Tiling":
        """Return the tiling without slots, channels or tiles beyond these sizes."""
        slots = min(self.slots, power_of_two(length))
        return Tiling(
            slots=slots,
            channels=min(self.channels, power_of_two(channels)),
            tiles=min(self.tiles, _ceil_div(length, slots)),
        )


def kernels() -> Any:
    """Return the module of the kernels; importing it needs Triton."""
    from longplay.models.scans import triton_source

    return triton_source


def selective_scan_triton(
    u: Tensor,
    dt: Tensor,
    A: Tensor,
    B: Tensor,
    C: Tensor,
    D: Tensor,
    z: Tensor,
    dt_bias: Tensor,
    starts: Tensor,
    tiling: Tiling | None = None,
) -> Tensor:
    """Compute softplus, scan, skip and gate. Differentiable once, in all arguments except `starts`.

    u, dt, B, C and z may have different dtypes. They are read in place if their last dimension is contiguous
    and their slots are evenly spaced, as in views of a projection's output; otherwise they are copied.

    Args:
        u: (B, L, E) float32 or bfloat16, the output of the convolution.
        dt: (B, L, E), the step sizes before bias and softplus.
        A: (E, N) float32, negative.
        B: (B, L, N).
        C: (B, L, N).
        D: (E,).
        z: (B, L, E), the gate before silu.
        dt_bias: (E,).
        starts: (B, L) bool, True at the first slot of each segment.
        tiling: by default chosen by the sizes.

    Returns:
        (B, L, E) of u's dtype.

    Raises:
        ValueError: the kernels do not run on this device, or a dtype is neither float32 nor bfloat16.
    """
    check_supported(u.device.type, (u.dtype, dt.dtype, B.dtype, C.dtype, z.dtype))
    num_rows, length, channels = u.shape
    tiling = (tiling or Tiling.choose(num_rows, length, channels)).fit(length, channels)
    u, dt, B, C, z = (x if _slot_stride(x) else x.contiguous() for x in (u, dt, B, C, z))
    return _TritonScan.apply(u, dt, A, B, C, D.contiguous(), z, dt_bias.contiguous(), starts, tiling)


def check_supported(device_type: str, dtypes: tuple[torch.dtype, ...]) -> None:
    """Raise ValueError if the kernels do not run on this device or with these dtypes."""
    if not can_run_triton(device_type):
        raise ValueError(
            "scan_backend=triton: requires Triton, not disabled by LONGPLAY_TRITON=0, and a CUDA device; "
            "use scan_backend=auto (TRITON_INTERPRET=1 interprets the kernels on a CPU, slowly, for tests)"
        )
    if not set(dtypes) <= set(DTYPES):
        raise ValueError(
            f"scan_backend=triton: requires float32 or bfloat16, not {', '.join(map(str, dtypes))}; "
            "use scan_backend=auto"
        )


def saved_elements(length: int, channels: int, d_state: int) -> float:
    """Return the float32 elements per slot that the forward saves beyond its inputs: a state per tile."""
    return _ceil_div(length, _TILE_SLOTS) * channels * d_state / length


def transient_elements(length: int, channels: int, d_state: int) -> float:
    """Return the most float32 elements per slot that the backward allocates beyond the gradients.

    They are dB and dC per block of channels, and per chunk the state's gradient and the sums over its slots.
    """
    of_slot = 2 * d_state * _ceil_div(channels, _TILE_CHANNELS)
    return of_slot + (2 * d_state + 2) * channels / min(length, _FEWEST_TILES * _TILE_SLOTS)


class _TritonScan(torch.autograd.Function):
    """The scan. The forward saves the state before each tile."""

    @staticmethod
    def forward(
        ctx: Any, u: Tensor, dt: Tensor, A: Tensor, B: Tensor, C: Tensor, D: Tensor, z: Tensor,
        dt_bias: Tensor, starts: Tensor, tiling: Tiling,
    ) -> Tensor:  # fmt: skip
        source = kernels()
        num_rows, length, channels = u.shape
        chunks = _ceil_div(length, tiling.slots * tiling.tiles)
        grid = num_rows * chunks, _ceil_div(channels, tiling.channels)
        a, flags = A.float().t().contiguous(), starts.contiguous().view(torch.uint8)
        entries, totals = a.new_empty(grid[0], tiling.tiles, *a.shape), a.new_empty(grid[0], channels)
        out = torch.empty_like(u, memory_format=torch.contiguous_format)
        sizes = _sizes(channels, A.shape[1], tiling)
        strides = _strides(u=u, dt=dt, z=z)
        if chunks > 1:
            source.chunk_sums[grid](
                u, dt, dt_bias, z, z, B, a, flags, entries, totals,
                length, chunks, tiling.tiles, tiling.tiles,
                dout_stride=0, **_strides(k=B), BACKWARD=False, **strides, **sizes,
            )  # fmt: skip
            _chain(a, entries, totals, num_rows, chunks, backward=False)
        strides |= _strides(b=B, c=C)
        source.chunk_forward[grid](
            u, dt, dt_bias, z, B, C, a, D, flags, entries, out, length, chunks, tiling.tiles,
            HAS_ENTRY=int(chunks > 1), **strides, **sizes,
        )  # fmt: skip
        ctx.save_for_backward(u, dt, A, B, C, D, z, dt_bias, flags, a, entries, totals)
        ctx.launch = grid, chunks, tiling.tiles, sizes, strides
        return out

    @staticmethod
    @once_differentiable
    def backward(  # pyright: ignore[reportIncompatibleMethodOverride] -- the decorator hides the name of ctx
        ctx: Any, *grad_outputs: Tensor
    ) -> tuple[Tensor | None, ...]:
        source = kernels()
        u, dt, A, B, C, D, z, dt_bias, flags, a, entries, totals = ctx.saved_tensors
        grid, chunks, tiles, sizes, strides = ctx.launch
        num_rows, length, channels = u.shape
        dout = grad_outputs[0].contiguous()
        exits = a.new_empty(grid[0], 1, *a.shape)
        if chunks > 1:
            source.chunk_sums[grid](
                u, dt, dt_bias, z, dout, C, a, flags, exits, totals, length, chunks, tiles, 1,
                u_stride=0, dt_stride=strides["dt_stride"], z_stride=strides["z_stride"],
                dout_stride=channels, k_stride=strides["c_stride"], BACKWARD=True, **sizes,
            )  # fmt: skip
            _chain(a, exits, totals, num_rows, chunks, backward=True)
        du, ddt, dz = (torch.empty_like(x, memory_format=torch.contiguous_format) for x in (u, dt, z))
        dbc = a.new_empty(grid[1], 2, num_rows, length, a.shape[0])
        dparam = a.new_empty(grid[0], a.shape[0] + 2, channels)
        source.chunk_backward[grid](
            u, dt, dt_bias, z, B, C, a, D, flags, entries, dout, exits, du, ddt, dz, dbc, dparam,
            num_rows * length, length, chunks, tiles,
            dout_stride=channels, HAS_ENTRY=int(chunks > 1), **strides, **sizes,
        )  # fmt: skip
        dB, dC = (dbc[0] if grid[1] == 1 else dbc.sum(0)).unbind(0)
        dparam = dparam.sum(0)
        dA, dD, dbias = dparam[:-2].t(), dparam[-2], dparam[-1]
        return (
            du, ddt, dA.to(A.dtype), dB.to(B.dtype), dC.to(C.dtype), dD.to(D.dtype), dz,
            dbias.to(dt_bias.dtype), None, None,
        )  # fmt: skip


def _chain(a: Tensor, sums: Tensor, totals: Tensor, num_rows: int, chunks: int, *, backward: bool) -> None:
    """Chain the chunks in place. `sums` (rows * chunks, tiles, N, E) has a chunk's sum in its first tile."""
    source = kernels()
    grid = num_rows, _ceil_div(a.numel(), _CHAIN_BLOCK)
    source.chain_chunks[grid](
        a, sums, totals, chunks, sums.shape[1],
        E=a.shape[1], N=a.shape[0], BLOCK=_CHAIN_BLOCK, BACKWARD=backward, num_warps=_CHAIN_WARPS, **_OPTIONS,
    )  # fmt: skip


def _sizes(channels: int, d_state: int, tiling: Tiling) -> dict[str, int]:
    """Return the sizes and options that a kernel is compiled for. Each thread has one channel."""
    warps = max(1, tiling.channels // 32)
    sizes = dict(E=channels, N=d_state, TILE=tiling.slots, BLOCK_E=tiling.channels)
    return sizes | dict(num_warps=warps) | _OPTIONS


def _strides(**tensors: Tensor) -> dict[str, int]:
    return {f"{name}_stride": _slot_stride(x) for name, x in tensors.items()}


def _slot_stride(x: Tensor) -> int:
    """Return the elements from a slot of x (B, L, ...) to the next; 0 if x must be copied first."""
    num_rows, length, width = x.shape
    stride = x.stride(1) if length > 1 else x.stride(0)
    even = num_rows == 1 or length == 1 or x.stride(0) == length * stride
    return stride if even and (width == 1 or x.stride(2) == 1) else 0


def _ceil_div(value: int, divisor: int) -> int:
    return -(-value // divisor)
