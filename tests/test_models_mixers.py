"""Mamba-1 and Mamba-2: every form of the recurrences against a float64 twin, and upstream's parameters."""

import math
from collections.abc import Callable, Sequence
from functools import partial

import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.nn import functional as F

from longplay.models import scan_cpp, scan_kernel
from longplay.models import ssd as ssd_module
from longplay.models.causal_conv import causal_conv_silu
from longplay.models.mamba import Mamba
from longplay.models.mamba2 import Mamba2
from longplay.models.scan_chunk import selective_scan_chunk
from longplay.models.segments import SegmentLayout
from longplay.models.selective_scan import selective_scan, selective_scan_ref
from longplay.models.ssd import ssd_chunk, ssd_ref
from longplay.native.loading import load_native

needs_compiler = pytest.mark.skipif(not scan_cpp.is_available(16), reason="needs a C++ compiler")
needs_cuda = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
needs_scan_kernel = pytest.mark.skipif(
    not (torch.cuda.is_available() and scan_kernel.is_available(torch.float32, 16)),
    reason="needs CUDA and mamba-ssm",
)
_SHAPES = st.tuples(
    st.integers(1, 18),
    st.integers(1, 70),
    st.integers(1, 9),
    st.sampled_from([1, 3, 8, 13, 16, 24, 32, 40, 64]),
)


def _seq_idx(generator: torch.Generator, num_rows: int, num_slots: int) -> Tensor:
    starts = torch.rand(num_rows, num_slots, generator=generator) < 0.15
    return starts.cumsum(1).to(torch.int32)


def _scan_inputs(
    shape: tuple[int, int, int, int], seed: int
) -> tuple[tuple[Tensor, Tensor, Tensor, Tensor, Tensor], Tensor]:
    """float64 u, dt, A, B, C of the recurrence at (B, L, E, N), and the segments."""
    num_rows, num_slots, channels, state = shape
    g = torch.Generator().manual_seed(seed)

    def normal(*sizes: int) -> Tensor:
        return torch.randn(*sizes, generator=g, dtype=torch.float64).float().double()

    inputs = (
        normal(num_rows, num_slots, channels),
        F.softplus(normal(num_rows, num_slots, channels)).float().double(),
        -normal(channels, state).exp().float().double(),
        normal(num_rows, num_slots, state),
        normal(num_rows, num_slots, state),
    )
    return inputs, _seq_idx(g, num_rows, num_slots)


def _assert_same_values_and_gradients(
    ours: Callable[..., Tensor],
    reference: Callable[..., Tensor],
    inputs: Sequence[Tensor],
    dtype: torch.dtype,
    tol: float,
    device: str = "cpu",
) -> None:
    """`ours` in `dtype` against `reference` in float64, errors relative to each tensor's largest value."""
    exact_inputs = [t.clone().requires_grad_() for t in inputs]
    our_inputs = [t.to(device, dtype).requires_grad_() for t in inputs]
    exact, got = reference(*exact_inputs), ours(*our_inputs)
    weights = torch.randn(exact.shape, generator=torch.Generator().manual_seed(1), dtype=dtype).to(got.device)
    exact_grads = torch.autograd.grad((exact * weights.to(exact.device)).sum(), exact_inputs)
    our_grads = torch.autograd.grad((got * weights).sum(), our_inputs)
    for a, b in zip([got, *our_grads], [exact, *exact_grads], strict=True):
        assert bool((a.double().cpu() - b).abs().max() <= tol * (b.abs().max() + 1))


@given(shape=_SHAPES, seed=st.integers(0, 99))
@example(shape=(1, 1, 1, 1), seed=0)
@settings(max_examples=12, deadline=None)
def test_chunk_scan_matches_the_float64_reference(shape: tuple[int, int, int, int], seed: int) -> None:
    inputs, seq_idx = _scan_inputs(shape, seed)
    starts = SegmentLayout(seq_idx).starts
    for dtype, tol in ((torch.float64, 1e-12), (torch.float32, 2e-5)):
        _assert_same_values_and_gradients(
            partial(selective_scan_chunk, starts=starts),
            partial(selective_scan_ref, starts=starts),
            inputs,
            dtype,
            tol,
        )


@needs_compiler
@given(shape=_SHAPES, seed=st.integers(0, 99))
@example(shape=(1, 1, 1, 1), seed=0)
@example(shape=(2, 65, 37, 32), seed=0)
@settings(max_examples=20, deadline=None)
def test_cpp_scan_matches_the_float64_reference(shape: tuple[int, int, int, int], seed: int) -> None:
    inputs, seq_idx = _scan_inputs(shape, seed)
    starts = SegmentLayout(seq_idx).starts
    _assert_same_values_and_gradients(
        partial(scan_cpp.selective_scan_cpp, starts=starts),
        partial(selective_scan_ref, starts=starts),
        inputs,
        torch.float32,
        2e-5,
    )


@needs_compiler
def test_cpp_decay_is_as_accurate_as_its_float32_exponent() -> None:
    dt = torch.cat([torch.zeros(1), torch.logspace(-9, 1.9, 4000)])
    u = torch.zeros(1, 2, len(dt))
    u[0, 0] = 1.0 / dt.clamp(
        min=1e-12
    )  # the state after slot 0 is 1 (0 where dt is 0), after slot 1 exp(-dt)
    ones = torch.ones(1, 2, 1)
    steps = dt.expand(1, 2, -1)
    starts = torch.tensor([[True, False]])
    y = scan_cpp.selective_scan_cpp(u, steps, -torch.ones(len(dt), 1), ones, ones, starts)
    exact = y[0, 0].double() * torch.exp(-dt.double())
    error = (y[0, 1].double() - exact).abs()
    assert bool(
        (error <= 2**-23 * (1 + dt) * exact).all()
    )  # dt A, rounded to float32, is itself off by 2^-24 |dt A|


@needs_compiler
@pytest.mark.parametrize("name", ["u", "dt", "B", "C"])
@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_cpp_scan_does_not_hide_a_non_finite_input(name: str, bad: float) -> None:
    (u, dt, A, B, C), _ = _scan_inputs((1, 6, 2, 8), 0)
    u, dt, A, B, C = u.float(), dt.float(), A.float(), B.float(), C.float()
    {"u": u, "dt": dt, "B": B, "C": C}[name][0, 3] = bad
    starts = torch.tensor([[True, False, False, False, False, True]])
    ours = scan_cpp.selective_scan_cpp(u, dt, A, B, C, starts)
    reference = selective_scan_ref(u, dt, A, B, C, starts)
    assert torch.equal(ours.isfinite(), reference.isfinite())
    assert not bool(ours[0, 3].isfinite().any())
    assert bool(ours[0, 5].isfinite().all())


@needs_compiler
@pytest.mark.parametrize("shape", [(20, 33, 16, 16), (2, 70, 40, 8)])
def test_cpp_scan_is_bitwise_equal_at_any_thread_count(shape: tuple[int, int, int, int]) -> None:
    inputs, seq_idx = _scan_inputs(shape, 3)
    starts = SegmentLayout(seq_idx).starts
    results = []
    threads = torch.get_num_threads()
    try:
        for count in (1, 2, 3):
            torch.set_num_threads(count)
            u, dt, A, B, C = leaves = tuple(t.float().requires_grad_() for t in inputs)
            y = scan_cpp.selective_scan_cpp(u, dt, A, B, C, starts)
            results.append([y, *torch.autograd.grad(y.square().sum(), leaves)])
    finally:
        torch.set_num_threads(threads)
    for other in results[1:]:
        assert all(torch.equal(a, b) for a, b in zip(results[0], other, strict=True))


def test_scan_falls_back_to_the_chunk_without_a_compiler(monkeypatch: pytest.MonkeyPatch) -> None:
    (u, dt, A, B, C), seq_idx = _scan_inputs((1, 5, 2, 4), 0)
    u, dt, A, B, C = u.float(), dt.float(), A.float(), B.float(), C.float()
    starts = SegmentLayout(seq_idx).starts
    monkeypatch.setenv("CXX", "no-such-compiler")
    load_native.cache_clear()
    try:
        chunk = selective_scan_chunk(u, dt, A, B, C, starts)
        assert torch.equal(selective_scan(u, dt, A, B, C, starts), chunk)
        with pytest.raises(ValueError, match="scan=cpp"):
            selective_scan(u, dt, A, B, C, starts, "cpp")
    finally:
        load_native.cache_clear()


def test_a_broken_build_falls_back_and_says_why(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", "/dev/null")
    load_native.cache_clear()
    try:
        assert not scan_cpp.is_available(16)
        assert "could not be built" in caplog.text or "no C++ compiler" in caplog.text
    finally:
        load_native.cache_clear()


def test_environment_chooses_the_scan(monkeypatch: pytest.MonkeyPatch) -> None:
    inputs, seq_idx = _scan_inputs((1, 5, 2, 4), 0)
    starts = SegmentLayout(seq_idx).starts
    monkeypatch.setenv("LONGPLAY_SCAN", "ref")
    assert torch.equal(selective_scan(*inputs, starts), selective_scan_ref(*inputs, starts))
    monkeypatch.setenv("LONGPLAY_SCAN", "fastest")
    with pytest.raises(ValueError, match=r"LONGPLAY_SCAN='fastest'"):
        selective_scan(*inputs, starts)


def test_kernel_scan_is_refused_on_the_cpu() -> None:
    inputs, seq_idx = _scan_inputs((1, 5, 2, 4), 0)
    with pytest.raises(ValueError, match="scan=kernel"):
        selective_scan(*inputs, SegmentLayout(seq_idx).starts, "kernel")


def test_resets_folded_into_the_inputs_equal_resets_in_the_scan() -> None:
    (u, dt, A, B, C), seq_idx = _scan_inputs((2, 30, 3, 4), 0)
    A = A - 1e-2
    starts = SegmentLayout(seq_idx).starts
    exact = selective_scan_ref(u, dt, A, B, C, starts)
    u, dt = scan_kernel.fold_resets(u, dt, starts)
    none = torch.zeros_like(starts)
    torch.testing.assert_close(selective_scan_ref(u, dt, A, B, C, none), exact, rtol=1e-9, atol=1e-9)


@given(
    sizes=st.tuples(
        st.integers(1, 4), st.integers(1, 80), st.integers(1, 3), st.integers(1, 5), st.integers(1, 6)
    ),
    seed=st.integers(0, 99),
)
@example(sizes=(1, 1, 1, 1, 1), seed=0)
@settings(max_examples=12, deadline=None)
def test_ssd_matches_the_float64_reference(sizes: tuple[int, int, int, int, int], seed: int) -> None:
    num_rows, num_slots, heads, headdim, state = sizes
    g = torch.Generator().manual_seed(seed)
    shapes = [(num_rows, num_slots, heads, headdim), (num_rows, num_slots, heads), (heads,)]
    shapes += [(num_rows, num_slots, state)] * 2
    x, dt, A, B, C = (torch.randn(s, generator=g, dtype=torch.float64) for s in shapes)
    inputs = [x, F.softplus(dt), -A.exp(), B, C]
    layout = SegmentLayout(_seq_idx(g, num_rows, num_slots))
    # decays are exponentials of differences of sums: float32 is off by 2^-24 times the sum, here up to 1000
    for dtype, tol in ((torch.float64, 1e-11), (torch.float32, 2e-4)):
        _assert_same_values_and_gradients(
            partial(ssd_chunk, layout=layout), partial(ssd_ref, layout=layout), inputs, dtype, tol
        )


@given(sizes=st.tuples(st.integers(1, 3), st.integers(1, 20), st.integers(1, 5), st.integers(1, 5)))
@settings(max_examples=15, deadline=None)
def test_convolution_matches_conv1d_on_each_segment(sizes: tuple[int, int, int, int]) -> None:
    num_rows, num_slots, channels, taps = sizes
    g = torch.Generator().manual_seed(0)
    seq_idx = _seq_idx(g, num_rows, num_slots)
    shapes = [(num_rows, num_slots, channels), (channels, taps), (channels,)]
    inputs = [torch.randn(s, generator=g, dtype=torch.float64) for s in shapes]

    def by_conv1d(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
        rows = []
        for row, numbers in zip(x, seq_idx, strict=True):
            lengths = numbers.unique_consecutive(return_counts=True)[1].tolist()
            parts = [F.pad(part.t(), (taps - 1, 0)).unsqueeze(0) for part in row.split(lengths)]
            outs = [F.conv1d(part, weight.unsqueeze(1), bias, groups=channels)[0].t() for part in parts]
            rows.append(torch.cat(outs))
        return F.silu(torch.stack(rows))

    layout = SegmentLayout(seq_idx)
    for dtype, tol in (
        (torch.float64, 1e-12),
        (torch.float32, 1e-5),
    ):  # float32 goes through C++ where it can
        _assert_same_values_and_gradients(
            partial(causal_conv_silu, layout=layout), by_conv1d, inputs, dtype, tol
        )


def test_mamba_has_the_parameters_of_upstream() -> None:
    d_model, d_state, d_conv = 72, 12, 4
    inner, rank = 2 * d_model, math.ceil(d_model / 16)
    expected = {
        "A_log": (inner, d_state),
        "D": (inner,),
        "in_proj.weight": (2 * inner, d_model),
        "conv1d.weight": (inner, 1, d_conv),
        "conv1d.bias": (inner,),
        "x_proj.weight": (rank + 2 * d_state, inner),
        "dt_proj.weight": (inner, rank),
        "dt_proj.bias": (inner,),
        "out_proj.weight": (d_model, inner),
    }
    mixer = Mamba(d_model, d_state=d_state, d_conv=d_conv)
    assert {name: tuple(value.shape) for name, value in mixer.state_dict().items()} == expected
    mixer.load_state_dict({name: torch.zeros(shape) for name, shape in expected.items()}, strict=True)


def test_mamba2_has_the_parameters_of_upstream() -> None:
    d_model, d_state, d_conv, headdim = 72, 12, 4, 16
    inner = 2 * d_model
    heads, conv_dim = inner // headdim, inner + 2 * d_state
    expected = {
        "dt_bias": (heads,),
        "A_log": (heads,),
        "D": (heads,),
        "in_proj.weight": (2 * inner + 2 * d_state + heads, d_model),
        "conv1d.weight": (conv_dim, 1, d_conv),
        "conv1d.bias": (conv_dim,),
        "norm.weight": (inner,),
        "out_proj.weight": (d_model, inner),
    }
    mixer = Mamba2(d_model, d_state=d_state, d_conv=d_conv, headdim=headdim)
    assert {name: tuple(value.shape) for name, value in mixer.state_dict().items()} == expected
    mixer.load_state_dict({name: torch.zeros(shape) for name, shape in expected.items()}, strict=True)


def test_mamba_keeps_its_own_initialisation() -> None:
    mixer = Mamba(64, d_state=8)
    torch.testing.assert_close(mixer.A_log.exp(), torch.arange(1.0, 9.0).expand(128, 8))
    assert bool((mixer.D == 1).all())
    dt = F.softplus(mixer.dt_proj.bias.detach())
    assert 1e-3 * 0.999 <= float(dt.min()) < 3e-3
    assert 3e-2 < float(dt.max()) <= 1e-1 * 1.001
    assert float(mixer.dt_proj.weight.detach().abs().max()) <= mixer.dt_rank**-0.5


def _upstream_formula(mixer: Mamba, x: Tensor) -> Tensor:
    """Upstream's unfused forward of one unpacked sequence batch, written from its description."""
    num_slots = x.shape[1]
    u, z = mixer.in_proj(x).chunk(2, dim=-1)
    u = F.silu(mixer.conv1d(u.transpose(1, 2))[..., :num_slots].transpose(1, 2))
    dt, B, C = mixer.x_proj(u).split([mixer.dt_rank, mixer.d_state, mixer.d_state], dim=-1)
    dt, A = F.softplus(mixer.dt_proj(dt)), -mixer.A_log.exp()
    state, outputs = torch.zeros(x.shape[0], *A.shape, dtype=x.dtype), []
    for t in range(num_slots):
        state = (dt[:, t, :, None] * A).exp() * state + (dt[:, t] * u[:, t])[..., None] * B[:, t, None]
        outputs.append((state * C[:, t, None]).sum(-1) + mixer.D * u[:, t])
    return mixer.out_proj(torch.stack(outputs, 1) * F.silu(z))


def test_mamba_forward_follows_the_upstream_formula() -> None:
    mixer, x = Mamba(16, d_state=5), torch.randn(2, 37, 16)
    layout = SegmentLayout(torch.zeros(2, 37, dtype=torch.int32))
    exact = _upstream_formula(mixer.double(), x.double())
    torch.testing.assert_close(mixer(x.double(), layout), exact, rtol=1e-10, atol=1e-10)
    torch.testing.assert_close(mixer.float()(x, layout).double(), exact, rtol=1e-5, atol=1e-5)


def test_mamba2_refuses_a_headdim_that_does_not_divide() -> None:
    with pytest.raises(ValueError, match="headdim=7"):
        Mamba2(16, headdim=7)


@pytest.mark.gpu
@needs_scan_kernel
def test_scan_kernel_matches_the_float64_reference() -> None:
    inputs, seq_idx = _scan_inputs((3, 200, 64, 32), 0)
    u, dt, A, B, C = inputs
    starts = SegmentLayout(seq_idx).starts
    _assert_same_values_and_gradients(
        partial(scan_kernel.selective_scan_kernel, starts=starts.cuda()),
        partial(selective_scan_ref, starts=starts),
        (u, dt, A - 1e-2, B, C),
        torch.float32,
        1e-4,
        device="cuda",
    )


@pytest.mark.gpu
@pytest.mark.skipif(
    not (torch.cuda.is_available() and ssd_module.kernel_is_available()), reason="needs CUDA and mamba-ssm"
)
def test_ssd_kernel_matches_the_chunked_form() -> None:
    g = torch.Generator().manual_seed(0)
    shapes = [(2, 300, 4, 32), (2, 300, 4), (4,), (2, 300, 32), (2, 300, 32)]
    x, dt, A, B, C = (torch.randn(s, generator=g, dtype=torch.float64) for s in shapes)
    seq_idx = _seq_idx(g, 2, 300)
    _assert_same_values_and_gradients(
        partial(ssd_module.ssd_kernel, layout=SegmentLayout(seq_idx.cuda())),
        partial(ssd_ref, layout=SegmentLayout(seq_idx)),
        [x, F.softplus(dt), -A.exp(), B, C],
        torch.float32,
        5e-3,
        device="cuda",
    )


@pytest.mark.gpu
@needs_cuda
@pytest.mark.parametrize("kind", [Mamba, Mamba2])
def test_mixer_on_cuda_equals_the_cpu(kind: type[Mamba] | type[Mamba2]) -> None:
    mixer, x = kind(64, d_state=16), torch.randn(2, 100, 64)
    seq_idx = _seq_idx(torch.Generator().manual_seed(0), 2, 100)
    exact = mixer(x, SegmentLayout(seq_idx))
    got = mixer.cuda()(x.cuda(), SegmentLayout(seq_idx.cuda()))
    torch.testing.assert_close(got.cpu(), exact, rtol=5e-3, atol=5e-3)


@needs_compiler
@pytest.mark.parametrize("num_slots", [20, 300])
def test_scan_without_a_backward_to_come_has_the_same_bits(num_slots: int) -> None:
    inputs, seq_idx = _scan_inputs((2, num_slots, 20, 12), 0)
    u, dt, A, B, C = (tensor.float() for tensor in inputs)
    starts = SegmentLayout(seq_idx).starts
    with torch.no_grad():
        alone = scan_cpp.selective_scan_cpp(u, dt, A, B, C, starts)
    assert torch.equal(alone, scan_cpp.selective_scan_cpp(u, dt, A, B, C, starts))
