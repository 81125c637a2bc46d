"""Compile the Triton scan for an H100, without a GPU: registers, spills, shared memory."""

import importlib.util

import pytest
from support.triton_compile import Usage, compile_for_h100

pytestmark = pytest.mark.skipif(importlib.util.find_spec("triton") is None, reason="needs triton")

FLOAT_POINTERS = {"BIAS", "A", "D", "SUMS", "TOTALS", "ENTRIES", "EXITS", "DBC", "DPARAM"}


def compile_kernel(name: str, dtype: str, channels: int, d_state: int, flag: int) -> Usage:
    from longplay.models.scans import triton_source
    from longplay.models.scans.triton_scan import Tiling

    kernel = getattr(triton_source, name)
    tiling = Tiling().fit(5000, channels)
    stride = 2 * d_state + 4
    sizes = dict(E=channels, N=d_state, TILE=tiling.slots, BLOCK_E=tiling.channels, BLOCK=256)
    sizes |= dict(u_stride=channels, dt_stride=channels, z_stride=2 * channels, dout_stride=channels)
    sizes |= dict(b_stride=stride, c_stride=stride, k_stride=stride, HAS_ENTRY=flag, BACKWARD=flag)
    types = {name: kind for name in kernel.arg_names if (kind := _type(name, sizes, dtype))}
    warps = 2 if name == "chain_chunks" else max(1, tiling.channels // 32)
    unaligned = tuple(triton_source.UNALIGNED)
    return compile_for_h100(kernel, types, sizes, unaligned=unaligned, num_warps=warps)


def _type(parameter: str, sizes: dict[str, int], dtype: str) -> str:
    """Return Triton's name of a parameter's type, "" for a constant."""
    if parameter in sizes:
        return ""
    if parameter == "STARTS":
        return "*u8"
    if parameter in FLOAT_POINTERS:
        return "*fp32"
    return f"*{dtype}" if parameter.isupper() and parameter != "L" else "i32"


@pytest.mark.parametrize(
    ("dtype", "channels", "d_state", "flag"),
    [
        ("bf16", 128, 32, 0),
        ("bf16", 128, 32, 1),
        ("fp32", 128, 32, 1),
        ("bf16", 256, 32, 1),
        ("fp32", 24, 5, 1),
        ("fp32", 1, 1, 0),
    ],
)
@pytest.mark.parametrize(
    ("name", "programs"),
    [("chunk_sums", 4), ("chain_chunks", 8), ("chunk_forward", 3), ("chunk_backward", 2)],
)
def test_a_kernel_leaves_room_for_other_programs(
    name: str,
    programs: int,
    dtype: str,
    channels: int,
    d_state: int,
    flag: int,
) -> None:
    usage = compile_kernel(name, dtype, channels, d_state, flag)
    assert usage.programs >= programs, usage
    assert usage.shared_bytes <= 1024, "slots of one channel are in different threads"
    assert usage.stack_bytes == 0, "registers are spilled"
