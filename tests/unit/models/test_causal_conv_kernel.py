"""The Triton convolution against PyTorch in float64, on a GPU or in Triton's interpreter; compiled."""

import importlib.util
import os
from typing import NamedTuple

import pytest
import torch
from support.triton_compile import compile_for_h100
from torch import Tensor

from longplay.models.base.segments import SegmentLayout
from longplay.models.mixers.causal_conv import causal_conv_silu

INTERPRETED = os.environ.get("TRITON_INTERPRET") == "1"
DEVICE = torch.device("cpu" if INTERPRETED or not torch.cuda.is_available() else "cuda")
F32, BF16 = torch.float32, torch.bfloat16
# Of the largest value of a tensor. bfloat16 rounds results and the gradient of the sum before the SiLU; the
# interpreter truncates them.
TOLERANCES = {F32: 1e-5, BF16: 2.0**-6}

needs_triton = pytest.mark.skipif(importlib.util.find_spec("triton") is None, reason="needs triton")


class Case(NamedTuple):
    """Sizes and contents of one convolution.

    Attributes:
        rows, slots, channels, taps: B, L, E, K.
        starts: slots at which segments start, beside a start in each row's slot 0.
        dtype: of x.
        narrow: weight and bias are bfloat16.
        strided: x is the second half of a projection's output.
    """

    rows: int
    slots: int
    channels: int
    taps: int
    starts: tuple[int, ...] = ()
    dtype: torch.dtype = F32
    narrow: bool = False
    strided: bool = False


CASES = {
    "starts around a tile's border": Case(2, 29, 128, 4, (6, 7, 8, 9, 15, 25)),
    "a start at a tile's border": Case(1, 24, 96, 4, (8,)),
    "starts around the border of a long tile": Case(2, 135, 16, 4, (62, 63, 64, 65, 128)),
    "rows end within tiles": Case(5, 13, 8, 4, (6,)),
    "rows shorter than the taps": Case(40, 2, 16, 4),
    "one slot": Case(3, 1, 8, 4),
    "a start in every slot": Case(1, 40, 8, 3, tuple(range(40))),
    "one segment of whole tiles": Case(1, 128, 8, 4),
    "one tap": Case(2, 35, 5, 1, (20,)),
    "two taps": Case(2, 35, 5, 2, (20, 21)),
    "eight taps": Case(2, 45, 4, 8, (20, 33)),
    "one channel": Case(2, 35, 1, 4, (20,)),
    "channels of two programs": Case(1, 37, 132, 4, (23,)),
    "bfloat16": Case(2, 50, 24, 4, (30, 31), BF16),
    "bfloat16, and the weights": Case(2, 50, 24, 4, (30, 31), BF16, narrow=True),
    "strided": Case(2, 50, 24, 4, (30, 31), strided=True),
    "strided bfloat16": Case(2, 50, 24, 3, (30, 31), BF16, strided=True),
}


def make(case: Case, device: torch.device) -> tuple[list[Tensor], SegmentLayout, Tensor]:
    """Return leaves x, weight and bias, the segments, and the gradient of the output, on `device`."""
    generator = torch.Generator().manual_seed(0)

    def normal(*shape: int, dtype: torch.dtype) -> Tensor:
        return torch.randn(*shape, generator=generator).to(device, dtype)

    starts = torch.zeros(case.rows, case.slots, dtype=torch.int32)
    starts[:, list(case.starts)] = 1
    x = normal(case.rows, case.slots, 2 * case.channels, dtype=case.dtype)[..., case.channels :]
    weight_dtype = BF16 if case.narrow else F32
    leaves = [
        x if case.strided else x.contiguous(),
        normal(case.channels, case.taps, dtype=weight_dtype),
        normal(case.channels, dtype=weight_dtype),
    ]
    layout = SegmentLayout(starts.cumsum(1).to(device, torch.int32))
    return [leaf.requires_grad_() for leaf in leaves], layout, normal(*x.shape, dtype=case.dtype)


def run(leaves: list[Tensor], layout: SegmentLayout, grad: Tensor) -> list[Tensor]:
    """Return the output and the gradients of x, weight and bias, by Triton unless they are float64."""
    out = causal_conv_silu(leaves[0], leaves[1], leaves[2], layout, "triton")
    return [out.detach(), *torch.autograd.grad(out, leaves, grad)]


@pytest.mark.kernels
@pytest.mark.parametrize("case", CASES.values(), ids=CASES)
def test_values_and_gradients_match_float64(case: Case) -> None:
    leaves, layout, grad = make(case, DEVICE)
    exact = run([leaf.detach().double().requires_grad_() for leaf in leaves], layout, grad.double())
    for ours, theirs, dtype in zip(
        run(leaves, layout, grad), exact, (case.dtype, *(leaf.dtype for leaf in leaves)), strict=True
    ):
        assert ours.dtype == dtype
        error = (ours.double() - theirs).abs().max()
        assert error <= TOLERANCES[dtype] * (theirs.abs().max() + 1)


@pytest.mark.kernels
@pytest.mark.parametrize("spaced", [False, True])
def test_rows_that_are_not_evenly_spaced_are_copied(spaced: bool) -> None:
    leaves, layout, grad = make(Case(3, 40, 8, 4, (9,)), DEVICE)
    x = leaves[0].detach()
    wide = torch.empty(3, 50, 8, device=DEVICE)[:, :40] if spaced else torch.empty(3, 8, 40, device=DEVICE).mT
    other = wide.copy_(x).requires_grad_()
    for a, b in zip(run(leaves, layout, grad), run([other, *leaves[1:]], layout, grad), strict=True):
        assert torch.equal(a, b)


@pytest.mark.kernels
def test_a_repetition_is_bitwise_equal() -> None:
    rows, slots = (64, 5000) if DEVICE.type == "cuda" else (1, 20)
    inputs = make(Case(rows, slots, 128, 4, (7, 8), BF16), DEVICE)
    first = run(*inputs)
    for _ in range(5 if DEVICE.type == "cuda" else 1):
        for a, b in zip(first, run(*inputs), strict=True):
            assert torch.equal(a, b)


@needs_triton
@pytest.mark.parametrize("name", ["conv_forward", "conv_backward_pre", "conv_backward_x"])
@pytest.mark.parametrize(("dtype", "channels", "taps"), [("bf16", 128, 4), ("fp32", 128, 4), ("fp32", 24, 4)])
def test_a_compiled_kernel_spills_no_registers(name: str, dtype: str, channels: int, taps: int) -> None:
    from longplay.models.mixers import causal_conv_kernel as source

    kernel = getattr(source, name)
    slots, block = source.tile(channels)
    sizes = dict(E=channels, K=taps, x_stride=2 * channels, TILE=slots, BLOCK_E=block, PADDED=8)
    types = dict(STARTS="*u8", SUMS="*fp32", num_slots="i32", L="i32", tiles="i32")
    types |= {each: f"*{dtype}" for each in ("X", "W", "BIAS", "OUT", "DOUT", "G", "DX")}
    usage = compile_for_h100(kernel, types, sizes, num_warps=1)
    assert usage.stack_bytes == 0, "registers are spilled"
    assert usage.programs >= 10, usage
    assert "ld.global.v4.b32" in usage.ptx, "a thread does not load 16 bytes at a time"
