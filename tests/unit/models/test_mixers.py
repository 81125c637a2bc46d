"""Mamba and Mamba-2: compatibility with mamba-ssm, the convolution, and Mamba-2's recurrence."""

import math
from functools import partial

import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st
from support.recurrences import assert_same_values_and_gradients, random_seq_idx
from torch import Tensor
from torch.nn import functional as F

from longplay.models.base.segments import SegmentLayout
from longplay.models.mixers.causal_conv import causal_conv_silu
from longplay.models.mixers.mamba import Mamba
from longplay.models.mixers.mamba2 import Mamba2
from longplay.models.scans import ssd as ssd_module
from longplay.models.scans.ssd import ssd_chunk, ssd_ref

needs_cuda = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")


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
    layout = SegmentLayout(random_seq_idx(g, num_rows, num_slots))
    # Decays are exponentials of differences of sums of up to 1000, so float32 has errors of 1000 * 2^-24.
    for dtype, tol in ((torch.float64, 1e-11), (torch.float32, 2e-4)):
        assert_same_values_and_gradients(
            partial(ssd_chunk, layout=layout), partial(ssd_ref, layout=layout), inputs, dtype, tol
        )


def test_ssd_under_autocast_is_as_accurate_as_its_operands() -> None:
    g = torch.Generator().manual_seed(0)
    shapes = [(2, 100, 4, 8), (2, 100, 4), (4,), (2, 100, 16), (2, 100, 16)]
    x, dt, A, B, C = (torch.rand(shape, generator=g, dtype=torch.float64) for shape in shapes)
    inputs = [x - 0.5, dt, -1 - 15 * A, B - 0.5, C - 0.5]  # A as Mamba-2 initializes it
    layout = SegmentLayout(random_seq_idx(g, 2, 100))

    def ours(*tensors: Tensor) -> Tensor:
        with torch.autocast("cpu", dtype=torch.bfloat16):
            return ssd_chunk(*tensors, layout=layout)

    assert_same_values_and_gradients(ours, partial(ssd_ref, layout=layout), inputs, torch.float32, 0.01)


@given(sizes=st.tuples(st.integers(1, 3), st.integers(1, 20), st.integers(1, 5), st.integers(1, 5)))
@settings(max_examples=15, deadline=None)
def test_convolution_matches_conv1d_per_segment(sizes: tuple[int, int, int, int]) -> None:
    num_rows, num_slots, channels, taps = sizes
    g = torch.Generator().manual_seed(0)
    seq_idx = random_seq_idx(g, num_rows, num_slots)
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
    # float32 uses C++ if a compiler is available
    for dtype, tol in ((torch.float64, 1e-12), (torch.float32, 1e-5)):
        assert_same_values_and_gradients(
            partial(causal_conv_silu, layout=layout), by_conv1d, inputs, dtype, tol
        )


def test_mamba_has_the_parameters_of_mamba_ssm() -> None:
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


def test_mamba2_has_the_parameters_of_mamba_ssm() -> None:
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


def test_mamba_has_the_published_initialization() -> None:
    mixer = Mamba(64, d_state=8)
    torch.testing.assert_close(mixer.A_log.exp(), torch.arange(1.0, 9.0).expand(128, 8))
    assert bool((mixer.D == 1).all())
    dt = F.softplus(mixer.dt_proj.bias.detach())
    assert 1e-3 * 0.999 <= float(dt.min()) < 3e-3
    assert 3e-2 < float(dt.max()) <= 1e-1 * 1.001
    assert float(mixer.dt_proj.weight.detach().abs().max()) <= mixer.dt_rank**-0.5


def _mamba_ssm_formula(mixer: Mamba, x: Tensor) -> Tensor:
    """Compute the unfused forward of mamba-ssm for unpacked sequences."""
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


def test_mamba_forward_matches_the_formula_of_mamba_ssm() -> None:
    mixer, x = Mamba(16, d_state=5), torch.randn(2, 37, 16)
    layout = SegmentLayout(torch.zeros(2, 37, dtype=torch.int32))
    exact = _mamba_ssm_formula(mixer.double(), x.double())
    torch.testing.assert_close(mixer(x.double(), layout), exact, rtol=1e-10, atol=1e-10)
    torch.testing.assert_close(mixer.float()(x, layout).double(), exact, rtol=1e-5, atol=1e-5)


def test_mamba2_rejects_a_headdim_that_is_not_a_divisor() -> None:
    with pytest.raises(ValueError, match="headdim=7"):
        Mamba2(16, headdim=7)


@pytest.mark.gpu
@pytest.mark.skipif(
    not (torch.cuda.is_available() and ssd_module.KERNEL.find()), reason="needs CUDA and mamba-ssm"
)
@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 5e-3), (torch.bfloat16, 2e-2)])
def test_ssd_kernel_matches_the_reference(dtype: torch.dtype, tolerance: float) -> None:
    g = torch.Generator().manual_seed(0)
    shapes = [(2, 300, 4, 32), (2, 300, 4), (4,), (2, 300, 32), (2, 300, 32)]
    x, dt, A, B, C = (torch.randn(s, generator=g, dtype=torch.float64) for s in shapes)
    seq_idx = random_seq_idx(g, 2, 300)
    layout = SegmentLayout(seq_idx.cuda())
    assert_same_values_and_gradients(
        lambda x, dt, A, B, C: ssd_module.ssd_kernel(x, dt.float(), A.float(), B, C, layout),
        partial(ssd_ref, layout=SegmentLayout(seq_idx)),
        [x, F.softplus(dt), -A.exp(), B, C],
        dtype,
        tolerance,
        device="cuda",
    )


@pytest.mark.gpu
@needs_cuda
@pytest.mark.parametrize("kind", [Mamba, Mamba2])
def test_mixer_on_cuda_matches_the_cpu(kind: type[Mamba] | type[Mamba2]) -> None:
    mixer, x = kind(64, d_state=16), torch.randn(2, 100, 64)
    seq_idx = random_seq_idx(torch.Generator().manual_seed(0), 2, 100)
    exact = mixer(x, SegmentLayout(seq_idx))
    got = mixer.cuda()(x.cuda(), SegmentLayout(seq_idx.cuda()))
    torch.testing.assert_close(got.cpu(), exact, rtol=5e-3, atol=5e-3)
