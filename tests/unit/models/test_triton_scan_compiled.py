"""Compile the Triton scan for an H100, without a GPU: registers, spills, shared memory."""

import importlib.util
import os
import re
import subprocess
from pathlib import Path
from typing import NamedTuple

import pytest

pytestmark = [
    pytest.mark.skipif(importlib.util.find_spec("triton") is None, reason="needs triton"),
    pytest.mark.skipif(os.environ.get("TRITON_INTERPRET") == "1", reason="the kernels are interpreted here"),
]

REGISTERS, THREADS, SHARED_BYTES = 65536, 2048, 232448  # of a multiprocessor of sm_90
FLOAT_POINTERS = {"BIAS", "A", "D", "SUMS", "TOTALS", "ENTRIES", "EXITS", "DBC", "DPARAM"}


class Usage(NamedTuple):
    """Resources of a compiled kernel.

    Attributes:
        registers: per thread.
        stack_bytes: per thread; spilled registers are there.
        shared_bytes: per program.
        threads: per program.
    """

    registers: int
    stack_bytes: int
    shared_bytes: int
    threads: int

    @property
    def programs(self) -> int:
        """Programs that fit on a multiprocessor."""
        registers = -(-self.registers // 8) * 8 * self.threads
        shared = self.shared_bytes + 1024  # reserved per program
        return min(REGISTERS // registers, THREADS // self.threads, SHARED_BYTES // shared)


def compile_kernel(name: str, dtype: str, channels: int, d_state: int, flag: int, path: Path) -> Usage:
    import triton  # pyright: ignore[reportMissingImports] -- optional
    from triton.backends.compiler import GPUTarget  # pyright: ignore[reportMissingImports] -- optional
    from triton.compiler import ASTSource  # pyright: ignore[reportMissingImports] -- optional

    from longplay.models.scans import triton_source
    from longplay.models.scans.triton_scan import Tiling

    kernel = getattr(triton_source, name)
    tiling = Tiling().fit(5000, channels)
    stride = 2 * d_state + 4
    sizes = dict(E=channels, N=d_state, TILE=tiling.slots, BLOCK_E=tiling.channels, BLOCK=256)
    sizes |= dict(u_stride=channels, dt_stride=channels, z_stride=2 * channels, dout_stride=channels)
    sizes |= dict(b_stride=stride, c_stride=stride, k_stride=stride, HAS_ENTRY=flag, BACKWARD=flag)
    types = {parameter: _type(parameter, sizes, dtype) for parameter in kernel.arg_names}
    aligned = {
        (i,): [["tt.divisibility", 16]]
        for i, parameter in enumerate(kernel.arg_names)
        if types[parameter].startswith("*") and parameter not in triton_source.UNALIGNED
    }
    constants = {size: value for size, value in sizes.items() if size in kernel.arg_names}
    warps = 2 if name == "chain_chunks" else max(1, tiling.channels // 32)
    source = ASTSource(kernel, types, constants, attrs=aligned)
    options = {"num_warps": warps, "enable_fp_fusion": True}
    compiled = triton.compile(source, target=GPUTarget("cuda", 90, 32), options=options)

    path.write_bytes(compiled.asm["cubin"])
    tool = Path(triton.__file__).parent / "backends/nvidia/bin/cuobjdump"
    command = [str(tool), "--dump-resource-usage", str(path)]
    report = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    found = re.search(r"REG:(\d+) STACK:(\d+)", report)
    assert found is not None, report
    return Usage(int(found[1]), int(found[2]), compiled.metadata.shared, 32 * warps)


def _type(parameter: str, sizes: dict[str, int], dtype: str) -> str:
    """Return Triton's name of a parameter's type."""
    if parameter in sizes:
        return "constexpr"
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
    tmp_path: Path,
) -> None:
    usage = compile_kernel(name, dtype, channels, d_state, flag, tmp_path / "kernel.cubin")
    assert usage.programs >= programs, usage
    assert usage.shared_bytes <= 1024, "slots of one channel are in different threads"
    assert usage.stack_bytes == 0, "registers are spilled"
