"""Compile Triton kernels for an H100, which needs no GPU, and read the resources that they use."""

import re
import subprocess
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import pytest

REGISTERS, THREADS, SHARED_BYTES = 65536, 2048, 232448  # of a multiprocessor of sm_90


class Usage(NamedTuple):
    """Resources of a compiled kernel.

    Attributes:
        registers: per thread.
        stack_bytes: per thread; spilled registers are there.
        shared_bytes: per program.
        threads: per program.
        ptx: the code for CUDA's assembler.
    """

    registers: int
    stack_bytes: int
    shared_bytes: int
    threads: int
    ptx: str

    @property
    def programs(self) -> int:
        """Programs that fit on a multiprocessor."""
        registers = -(-self.registers // 8) * 8 * self.threads
        shared = self.shared_bytes + 1024  # reserved per program
        return min(REGISTERS // registers, THREADS // self.threads, SHARED_BYTES // shared)


def compile_for_h100(
    kernel: Any,
    types: Mapping[str, str],
    constants: Mapping[str, Any],
    *,
    unaligned: tuple[str, ...] = (),
    **options: Any,
) -> Usage:
    """Compile a kernel and return its resources.

    Args:
        types: Triton's type of each parameter that is no constant, such as "*bf16".
        constants: values of the other parameters; those that the kernel lacks are left out.
        unaligned: pointers that Triton must not take for aligned to 16 bytes.
        options: of the compiler, such as num_warps.
    """
    import triton  # pyright: ignore[reportMissingImports] -- optional
    from triton.backends.compiler import GPUTarget  # pyright: ignore[reportMissingImports] -- optional
    from triton.compiler import ASTSource  # pyright: ignore[reportMissingImports] -- optional

    signature = {name: types.get(name, "constexpr") for name in kernel.arg_names}
    aligned = {
        (at,): [["tt.divisibility", 16]]
        for at, (name, kind) in enumerate(signature.items())
        if kind.startswith("*") and name not in unaligned
    }
    values = {name: constants[name] for name in kernel.arg_names if signature[name] == "constexpr"}
    source = ASTSource(kernel, signature, values, attrs=aligned)
    options = {"enable_fp_fusion": True} | options
    compiled = triton.compile(source, target=GPUTarget("cuda", 90, 32), options=options)
    tool = Path(triton.__path__[0]) / "backends/nvidia/bin/cuobjdump"
    if not tool.is_file():
        pytest.skip("this Triton has no cuobjdump")
    with tempfile.NamedTemporaryFile(suffix=".cubin") as cubin:
        cubin.write(compiled.asm["cubin"])
        cubin.flush()
        command = [str(tool), "--dump-resource-usage", cubin.name]
        report = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    found = re.search(r"REG:(\d+) STACK:(\d+)", report)
    assert found is not None, report
    metadata = compiled.metadata
    return Usage(int(found[1]), int(found[2]), metadata.shared, 32 * metadata.num_warps, compiled.asm["ptx"])
