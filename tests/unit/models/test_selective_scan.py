"""Backends of Mamba-1's scan against a float64 reference, and the choice of the backend."""

import math
from collections.abc import Iterator
from functools import partial

import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st
from support.recurrences import assert_same_values_and_gradients, scan_inputs

from longplay.models.base.segments import SegmentLayout
from longplay.models.scans import cpp as scan_cpp
from longplay.models.scans import kernel as scan_kernel
from longplay.models.scans.chunk import selective_scan_chunk
from longplay.models.scans.selective_scan import selective_scan, selective_scan_ref
from longplay.native.loading import load_native

needs_compiler = pytest.mark.skipif(not scan_cpp.is_available(16), reason="needs a C++ compiler")
needs_scan_kernel = pytest.mark.skipif(
    not (torch.cuda.is_available() and scan_kernel.KERNEL.find()),
    reason="needs CUDA and mamba-ssm",
)
_SHAPES = st.tuples(
    st.integers(1, 18),
    st.integers(1, 70),
    st.integers(1, 9),
    st.sampled_from([1, 3, 8, 13, 16, 24, 32, 40, 64]),
)


@given(shape=_SHAPES, seed=st.integers(0, 99))
@example(shape=(1, 1, 1, 1), seed=0)
@settings(max_examples=12, deadline=None)
def test_chunk_scan_matches_the_float64_reference(shape: tuple[int, int, int, int], seed: int) -> None:
    inputs, seq_idx = scan_inputs(shape, seed)
    starts = SegmentLayout(seq_idx).starts
    for dtype, tol in ((torch.float64, 1e-12), (torch.float32, 2e-5)):
        assert_same_values_and_gradients(
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
    inputs, seq_idx = scan_inputs(shape, seed)
    starts = SegmentLayout(seq_idx).starts
    assert_same_values_and_gradients(
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
    # The state is 1 after slot 0 (0 where dt is 0) and exp(-dt) after slot 1.
    u[0, 0] = 1.0 / dt.clamp(min=1e-12)
    ones = torch.ones(1, 2, 1)
    steps = dt.expand(1, 2, -1)
    starts = torch.tensor([[True, False]])
    y = scan_cpp.selective_scan_cpp(u, steps, -torch.ones(len(dt), 1), ones, ones, starts)
    exact = y[0, 0].double() * torch.exp(-dt.double())
    error = (y[0, 1].double() - exact).abs()
    # Rounding dt A to float32 already has an error of 2^-24 |dt A|.
    assert bool((error <= 2**-23 * (1 + dt) * exact).all())


@needs_compiler
@pytest.mark.parametrize("name", ["u", "dt", "B", "C"])
@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_cpp_scan_propagates_non_finite_inputs(name: str, bad: float) -> None:
    (u, dt, A, B, C), _ = scan_inputs((1, 6, 2, 8), 0)
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
def test_cpp_scan_is_bitwise_equal_for_any_thread_count(shape: tuple[int, int, int, int]) -> None:
    inputs, seq_idx = scan_inputs(shape, 3)
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


@pytest.fixture
def loading_anew() -> Iterator[None]:
    """Forget which native libraries are loaded, before and after a test."""
    load_native.cache_clear()
    yield
    load_native.cache_clear()


@pytest.mark.usefixtures("loading_anew")
def test_scan_without_a_compiler_falls_back_to_chunk(monkeypatch: pytest.MonkeyPatch) -> None:
    (u, dt, A, B, C), seq_idx = scan_inputs((1, 5, 2, 4), 0)
    u, dt, A, B, C = u.float(), dt.float(), A.float(), B.float(), C.float()
    starts = SegmentLayout(seq_idx).starts
    monkeypatch.setenv("CXX", "no-such-compiler")
    chunk = selective_scan_chunk(u, dt, A, B, C, starts)
    assert torch.equal(selective_scan(u, dt, A, B, C, starts), chunk)
    with pytest.raises(ValueError, match="scan_backend=cpp"):
        selective_scan(u, dt, A, B, C, starts, "cpp")


@pytest.mark.usefixtures("loading_anew")
def test_failed_build_is_logged(monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", "/dev/null")
    assert not scan_cpp.is_available(16)
    assert "build failed" in caplog.text or "no C++ compiler" in caplog.text


@pytest.mark.usefixtures("loading_anew")
def test_without_a_home_folder_torch_is_used(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    for name in ("HOME", "XDG_CACHE_HOME"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr("pwd.getpwuid", lambda uid: {}[uid])  # as in a container with any user id
    assert not scan_cpp.is_available(16)
    assert "set XDG_CACHE_HOME" in caplog.text or "no C++ compiler" in caplog.text


def test_environment_variable_selects_the_backend(monkeypatch: pytest.MonkeyPatch) -> None:
    inputs, seq_idx = scan_inputs((1, 5, 2, 4), 0)
    starts = SegmentLayout(seq_idx).starts
    monkeypatch.setenv("LONGPLAY_SCAN", "ref")
    assert torch.equal(selective_scan(*inputs, starts), selective_scan_ref(*inputs, starts))
    monkeypatch.setenv("LONGPLAY_SCAN", "fastest")
    with pytest.raises(ValueError, match=r"LONGPLAY_SCAN='fastest'"):
        selective_scan(*inputs, starts)


def test_kernel_backend_on_the_cpu_raises() -> None:
    inputs, seq_idx = scan_inputs((1, 5, 2, 4), 0)
    with pytest.raises(ValueError, match="scan_backend=kernel"):
        selective_scan(*inputs, SegmentLayout(seq_idx).starts, "kernel")


def test_resets_folded_into_the_inputs_match_resets_in_the_scan() -> None:
    (u, dt, A, B, C), seq_idx = scan_inputs((2, 30, 3, 4), 0)
    A = A - 1e-2
    starts = SegmentLayout(seq_idx).starts
    exact = selective_scan_ref(u, dt, A, B, C, starts)
    u, dt = scan_kernel.fold_resets(u, dt, A, starts)
    none = torch.zeros_like(starts)
    torch.testing.assert_close(selective_scan_ref(u, dt, A, B, C, none), exact, rtol=1e-9, atol=1e-9)


@needs_compiler
@pytest.mark.parametrize("num_slots", [20, 300])
def test_cpp_scan_without_gradients_is_bitwise_equal(num_slots: int) -> None:
    inputs, seq_idx = scan_inputs((2, num_slots, 20, 12), 0)
    u, dt, A, B, C = (tensor.float() for tensor in inputs)
    starts = SegmentLayout(seq_idx).starts
    with torch.no_grad():
        alone = scan_cpp.selective_scan_cpp(u, dt, A, B, C, starts)
    assert torch.equal(alone, scan_cpp.selective_scan_cpp(u, dt, A, B, C, starts))


@pytest.mark.gpu
@needs_scan_kernel
def test_scan_kernel_matches_the_float64_reference() -> None:
    inputs, seq_idx = scan_inputs((3, 200, 64, 32), 0)
    u, dt, A, B, C = inputs
    starts = SegmentLayout(seq_idx).starts
    assert_same_values_and_gradients(
        partial(scan_kernel.selective_scan_kernel, starts=starts.cuda()),
        partial(selective_scan_ref, starts=starts),
        (u, dt, A - 1e-2, B, C),
        torch.float32,
        1e-4,
        device="cuda",
    )
