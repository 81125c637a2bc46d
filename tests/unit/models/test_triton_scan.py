"""The Triton scan against a float64 reference, on a GPU if there is one, else in Triton's interpreter."""

import os
from collections.abc import Callable, Sequence
from typing import NamedTuple

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from longplay.models.base.segments import SegmentLayout, select_slots
from longplay.models.mixers.mamba import Mamba
from longplay.models.scans.selective_scan import selective_scan_ref
from longplay.models.scans.triton_scan import Tiling, selective_scan_triton

INTERPRETED = os.environ.get("TRITON_INTERPRET") == "1"
DEVICE = torch.device("cpu" if INTERPRETED or not torch.cuda.is_available() else "cuda")
NAMES = ("u", "dt", "A", "B", "C", "D", "z", "dt_bias")
F32, BF16 = torch.float32, torch.bfloat16
# Of the largest value of a tensor. A bfloat16 value may in addition be off by one unit in its last place: the
# interpreter truncates.
TOLERANCE, BF16_UNIT = 2e-5, 2.0**-7


class Case(NamedTuple):
    """Sizes and contents of one scan.

    Attributes:
        rows, length, channels, d_state: B, L, E, N.
        starts: where segments start, see `make_starts`.
        tiling: slots and channels of a tile, and tiles of a chunk.
        dtype: of u, dt, B, C and z.
        dt_shift: added to the bias of the step sizes, which makes steps of 1e-3 to 1e-1.
    """

    rows: int
    length: int
    channels: int
    d_state: int
    starts: str
    tiling: tuple[int, int, int] = (4, 16, 2)
    dtype: torch.dtype = F32
    dt_shift: float = 0.0


CASES = {
    "random starts, uneven length": Case(2, 19, 16, 2, "random"),
    "starts at chunk borders": Case(3, 19, 16, 2, "border"),
    "starts at tile borders": Case(3, 24, 16, 2, "border", (8, 16, 1)),
    "a start in every slot": Case(1, 19, 8, 2, "all"),
    "one segment": Case(1, 19, 8, 2, "one"),
    "a segment of several chunks, then another": Case(1, 27, 8, 2, "late"),
    "no start": Case(1, 19, 8, 2, "none"),
    "three tiles per chunk": Case(1, 24, 16, 2, "border", (4, 16, 3)),
    "one chunk": Case(1, 21, 16, 2, "random", (8, 16, 99)),
    "one tile": Case(2, 13, 16, 2, "random", (16, 16, 1)),
    "one slot": Case(2, 1, 16, 4, "one"),
    "one channel and one state": Case(2, 11, 1, 1, "random"),
    "three blocks of channels": Case(1, 13, 40, 2, "random"),
    "sizes that are not powers of two": Case(1, 13, 24, 5, "random"),
    "long chain of chunks": Case(1, 33, 8, 1, "one", (4, 8, 1)),
    "large steps": Case(1, 40, 16, 8, "late", (16, 16, 1), dt_shift=5.0),
    "small steps": Case(1, 40, 16, 2, "one", (16, 16, 2), dt_shift=-4.0),
    "bfloat16, random starts": Case(1, 21, 16, 2, "random", dtype=BF16),
    "bfloat16, chunk borders": Case(1, 21, 16, 2, "border", dtype=BF16),
}
LARGE_CASES = {
    f"{name}, {dtype}": Case(rows, length, 128, 32, "random", (16, 128, tiles), dtype)
    for name, rows, length, tiles in (("short rows", 128, 200, 13), ("long rows", 2, 5000, 4))
    for dtype in (F32, BF16)
}


def make_inputs(case: Case) -> list[Tensor]:
    """Return the tensors of NAMES; z, B and C are views as in the mixer."""
    g = torch.Generator().manual_seed(case.length)
    rows, length, channels, d_state = case[:4]

    def normal(*sizes: int) -> Tensor:
        return torch.randn(*sizes, generator=g)

    A = -torch.arange(1.0, d_state + 1) * torch.exp(0.1 * normal(channels, d_state))
    steps = 10 ** (-3 + 2 * torch.rand(channels, generator=g))
    dt_bias = torch.log(torch.expm1(steps)) + case.dt_shift
    projected, mixed = normal(rows, length, 2 * channels), normal(rows, length, 4 + 2 * d_state)
    projected, mixed = projected.to(DEVICE, case.dtype), mixed.to(DEVICE, case.dtype)
    u, dt = (normal(rows, length, channels).to(DEVICE, case.dtype) for _ in range(2))
    _, B, C = mixed.split([4, d_state, d_state], dim=2)
    D = normal(channels)
    return [u, dt, A.to(DEVICE), B, C, D.to(DEVICE), projected[..., channels:], dt_bias.to(DEVICE)]


def make_starts(case: Case) -> Tensor:
    starts = torch.zeros(case.rows, case.length, dtype=torch.bool)
    starts[:, 0] = case.starts != "none"
    chunk = case.tiling[0] * case.tiling[2]
    if case.starts == "random":
        starts |= torch.rand(starts.shape, generator=torch.Generator().manual_seed(1)) < 0.1
    elif case.starts == "border":  # the last slot of a chunk, or the first, or the second
        for row in range(case.rows):
            starts[row, chunk - 1 + row % 3 :: chunk] = True
    elif case.starts == "all":
        starts[:] = True
    elif case.starts == "late":
        starts[:, min(case.length - 1, 2 * chunk + chunk // 2)] = True
    else:
        assert case.starts in ("one", "none")
    return starts.to(DEVICE)


def reference(
    u: Tensor, dt: Tensor, A: Tensor, B: Tensor, C: Tensor, D: Tensor, z: Tensor, dt_bias: Tensor,
    starts: Tensor,
) -> Tensor:  # fmt: skip
    y = selective_scan_ref(u, F.softplus(dt + dt_bias), A, B, C, starts)
    return (y + D * u) * F.silu(z)


def values_and_gradients(
    function: Callable[[Sequence[Tensor]], Tensor], inputs: list[Tensor]
) -> list[Tensor]:
    """Return the output and the gradients of `inputs`."""
    leaves = [tensor.detach().requires_grad_() for tensor in inputs]
    out = function(leaves)
    g = torch.Generator().manual_seed(2)
    dout = torch.randn(out.shape, generator=g).to(out.device, BF16).to(out.dtype)
    return [out.detach(), *torch.autograd.grad(out, leaves, dout)]


def assert_matches_the_reference(case: Case) -> None:
    inputs, starts = make_inputs(case), make_starts(case)
    slots, channels, tiles = case.tiling
    tiling = Tiling(slots=slots, channels=channels, tiles=tiles)

    def ours(leaves: Sequence[Tensor]) -> Tensor:
        return selective_scan_triton(*leaves, starts=starts, tiling=tiling)

    exact = values_and_gradients(
        lambda leaves: reference(*leaves, starts=starts), [x.double() for x in inputs]
    )
    got = values_and_gradients(ours, inputs)
    for name, value, expected in zip(("out", *NAMES), got, exact, strict=True):
        assert value.isfinite().all(), name
        error = (value.double() - expected).abs()
        if value.dtype == BF16:
            error -= BF16_UNIT * expected.abs()
        largest = max(float(expected.abs().max()), 1e-3)  # dA is 0 if every segment is one slot
        assert float(error.max()) <= TOLERANCE * largest, f"{name}: {float(error.max()) / largest}"
    if not INTERPRETED:
        again = values_and_gradients(ours, inputs)
        assert all(torch.equal(a, b) for a, b in zip(got, again, strict=True)), "not repeatable"


@pytest.mark.kernels
@pytest.mark.parametrize("name", CASES)
def test_values_and_gradients_match_the_float64_reference(name: str) -> None:
    assert_matches_the_reference(CASES[name])


@pytest.mark.gpu
@pytest.mark.kernels
@pytest.mark.parametrize("name", LARGE_CASES)
def test_large_shapes_match_the_float64_reference(name: str) -> None:
    assert_matches_the_reference(LARGE_CASES[name])


@pytest.mark.kernels
def test_a_segment_does_not_change_another() -> None:
    case = Case(1, 25, 8, 2, "one")
    inputs, starts = make_inputs(case), make_starts(case)
    starts[:, 13] = True
    other = [x.clone() for x in inputs]
    for i in (0, 1, 3, 4, 6):
        other[i][:, :13] = 3e3 * other[i][:, :13].abs()
    tiling = Tiling(slots=4, channels=8, tiles=2)

    def late_values(inputs: list[Tensor]) -> list[Tensor]:
        found = values_and_gradients(
            lambda leaves: selective_scan_triton(*leaves, starts=starts, tiling=tiling), inputs
        )
        return [found[i][:, 13:] for i in (0, 1, 2, 4, 5, 7)]

    for a, b in zip(late_values(inputs), late_values(other), strict=True):
        assert torch.equal(a, b)


@pytest.mark.kernels
def test_inputs_of_any_layout_give_the_same_values() -> None:
    case = Case(2, 9, 8, 3, "random")
    inputs, starts = make_inputs(case), make_starts(case)
    dense = [x.contiguous() for x in inputs]
    transposed = [x.transpose(1, 2).contiguous().transpose(1, 2) if x.dim() == 3 else x for x in inputs]
    wide = [torch.cat([x, x], dim=1)[:, : case.length] if x.dim() == 3 else x for x in inputs]
    expected, *found = (
        values_and_gradients(lambda leaves: selective_scan_triton(*leaves, starts=starts), x)
        for x in (dense, inputs, transposed, wide)
    )
    for values in found:
        assert all(torch.equal(a, b) for a, b in zip(values, expected, strict=True))


def make_mixers() -> tuple[Mamba, Mamba, Tensor, SegmentLayout]:
    """Return the mixer with "triton" and with "ref", of the same weights, an input and its segments.

    The inner width is 20. The convolution is then in PyTorch also on a GPU, in both mixers.
    """
    torch.manual_seed(0)
    ours, ref = (Mamba(10, d_state=3, scan=scan).to(DEVICE) for scan in ("triton", "ref"))
    ref.load_state_dict(ours.state_dict())
    g = torch.Generator().manual_seed(1)
    x = torch.randn(2, 21, 10, generator=g).to(DEVICE)
    return ours, ref, x, SegmentLayout((torch.rand(2, 21, generator=g) < 0.15).cumsum(1).int().to(DEVICE))


@pytest.mark.kernels
@pytest.mark.parametrize(("bf16", "tol"), [(False, 2e-5), (True, 3e-2)])
def test_the_mixer_equals_the_mixer_with_the_reference(bf16: bool, tol: float) -> None:
    ours, ref, x, layout = make_mixers()
    found = []
    for mixer in (ours, ref):
        x = x.detach().requires_grad_()
        with torch.autocast(DEVICE.type, BF16, enabled=bf16):
            out = mixer(x, layout)
        out.square().sum().backward()
        assert x.grad is not None
        found.append([out.detach(), x.grad, *(parameter.grad for parameter in mixer.parameters())])
        assert out.dtype == (BF16 if bf16 else F32)
    for a, b in zip(*found, strict=True):
        assert float((a - b).abs().max()) <= tol * float(b.abs().max())


@pytest.mark.kernels
def test_the_mixer_at_chosen_slots_equals_the_mixer_at_all_slots() -> None:
    ours, ref, x, layout = make_mixers()
    at = torch.tensor([0, 20, 21, 30], device=DEVICE)
    with torch.no_grad():
        chosen = ours(x, layout, at)
        assert torch.allclose(chosen, select_slots(ours(x, layout), at), atol=1e-6)
        assert torch.allclose(chosen, ref(x, layout, at), atol=1e-5)


@pytest.mark.kernels
def test_other_dtypes_are_rejected() -> None:
    case = Case(1, 5, 4, 2, "one")
    u, *rest = make_inputs(case)
    with pytest.raises(
        ValueError, match=r"scan_backend=triton: requires float32 or bfloat16, not torch\.float64"
    ):
        selective_scan_triton(u.double(), *rest, starts=make_starts(case))


def test_the_backend_needs_a_gpu_outside_the_interpreter(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("TRITON_INTERPRET", raising=False)
    mixer = Mamba(8, d_state=2, scan="triton")
    with pytest.raises(ValueError, match=r"scan_backend=triton: requires Triton, .* and a CUDA device"):
        mixer(torch.randn(1, 3, 8), SegmentLayout(torch.zeros(1, 3, dtype=torch.int32)))
