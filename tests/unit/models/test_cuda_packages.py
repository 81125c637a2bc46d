"""Calls into mamba-ssm and causal-conv1d: arguments, layouts and results, without a GPU."""

import inspect
from collections.abc import Callable
from contextlib import nullcontext
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from support.cuda_packages import SIGNATURES, STAND_INS, installed_signature
from torch import Tensor

from longplay.models.base.segments import SegmentLayout
from longplay.models.mixers.causal_conv import causal_conv_silu, causal_conv_silu_package
from longplay.models.mixers.mamba import Mamba
from longplay.models.mixers.mamba2 import Mamba2
from longplay.models.scans import packages
from longplay.models.scans import ssd as ssd_module
from longplay.models.scans.kernel import selective_scan_kernel
from longplay.models.scans.packages import PackageFunction
from longplay.models.scans.ssd import ssd_kernel, ssd_ref

B, L, D = 3, 21, 16
SEQ_IDX = torch.tensor([[0] * 21, [0] * 7 + [1] + [2] * 13, [4] * 16 + [5] * 5], dtype=torch.int32)
FUNCTIONS = pytest.mark.parametrize("function", list(SIGNATURES), ids=lambda function: function.name)


@pytest.fixture
def calls(monkeypatch: pytest.MonkeyPatch) -> list[PackageFunction]:
    """Let the stand-ins answer for the packages; check each call against the recorded signature."""
    made: list[PackageFunction] = []

    def find(module: str, name: str) -> tuple[Callable[..., Any], str]:
        (function,) = (each for each in STAND_INS if (each.module, each.name) == (module, name))
        parameters = inspect.signature(eval(f"lambda {SIGNATURES[function]}: None"))

        def call(*args: Any, **kwargs: Any) -> Any:
            parameters.bind(*args, **kwargs)
            made.append(function)
            return STAND_INS[function](*args, **kwargs)

        return call, ""

    monkeypatch.setattr(packages, "_find", find)
    return made


@FUNCTIONS
def test_recorded_signatures_are_those_of_the_installed_packages(function: PackageFunction) -> None:
    installed = installed_signature(function)
    if installed is None:
        pytest.skip(f"{function.package} is not installed")
    assert installed == SIGNATURES[function]


def gradients(mixer: Mamba | Mamba2, x: Tensor, layout: SegmentLayout, autocast: bool) -> list[Tensor]:
    """Return the output, and the gradients of the input and of each parameter."""
    x = x.clone().requires_grad_()
    with torch.autocast("cpu", dtype=torch.bfloat16, enabled=autocast):
        out = mixer(x, layout)
    weights = torch.randn(out.shape, generator=torch.Generator().manual_seed(3))
    return [out.detach(), *torch.autograd.grad((out.float() * weights).sum(), [x, *mixer.parameters()])]


@pytest.mark.parametrize("autocast", [False, True], ids=["fp32", "bf16"])
@pytest.mark.parametrize("build", [Mamba, lambda d, **s: Mamba2(d, headdim=8, **s)], ids=["mamba", "mamba2"])
def test_a_mixer_calls_the_packages_as_they_demand(
    calls: list[PackageFunction], monkeypatch: pytest.MonkeyPatch, build: Any, autocast: bool
) -> None:
    torch.manual_seed(0)
    mixer, layout = build(D, d_state=8, scan="ref"), SegmentLayout(SEQ_IDX)
    x = torch.randn(B, L, D)
    expected = gradients(mixer, x, layout, autocast)
    assert not calls
    mixer.scan = "kernel"
    by_package = lambda x, weight, bias, layout, scan: causal_conv_silu_package(x, weight, bias, layout)  # noqa: E731
    monkeypatch.setattr(f"{type(mixer).__module__}.causal_conv_silu", by_package)
    monkeypatch.setattr("longplay.models.scans.selective_scan._check_backend", lambda *_: None)
    monkeypatch.setattr(ssd_module, "runs_kernel", lambda x, scan: True)
    monkeypatch.setattr("longplay.models.mixers.mamba2.runs_kernel", lambda x, scan: True)
    found = gradients(mixer, x, layout, autocast)
    assert len(calls) == 2
    for value, other in zip(found, expected, strict=True):
        tolerance = (0.03 if autocast else 1e-4) * float(other.abs().max())
        torch.testing.assert_close(value, other, rtol=0, atol=tolerance)


@pytest.mark.parametrize("taps", [2, 3, 4])
@pytest.mark.parametrize("length", [1, 2, 21])
def test_the_convolution_takes_a_view_of_a_projection(
    calls: list[PackageFunction], taps: int, length: int
) -> None:
    torch.manual_seed(0)
    projected = torch.randn(B, length, 40)
    weight, bias, layout = torch.randn(16, taps), torch.randn(16), SegmentLayout(SEQ_IDX[:, :length])
    for view in (projected[..., :16], projected[..., 3:19], projected[:, :, 24:]):
        out = causal_conv_silu_package(view, weight, bias, layout)
        torch.testing.assert_close(out, causal_conv_silu(view, weight, bias, layout, "ref"))


def test_every_layout_of_the_gradient_is_accepted(calls: list[PackageFunction]) -> None:
    weight, bias, layout = torch.randn(16, 4), torch.randn(16), SegmentLayout(SEQ_IDX)
    x = torch.randn(B, L, 16, requires_grad=True)
    for grad in (
        torch.randn(B, L, 16),
        torch.randn(B, 16, L).transpose(1, 2),
        torch.ones(()).expand(B, L, 16),
        torch.randn(B, L, 48)[..., 8:24],
    ):
        (found,) = torch.autograd.grad(causal_conv_silu_package(x, weight, bias, layout), x, grad)
        (expected,) = torch.autograd.grad(causal_conv_silu(x, weight, bias, layout, "ref"), x, grad)
        torch.testing.assert_close(found, expected)


def test_the_scan_passes_contiguous_slots(calls: list[PackageFunction]) -> None:
    torch.manual_seed(0)
    u, dt = torch.randn(2, B, L, 8).unbind(0)
    b, c = torch.randn(B, L, 11)[..., 3:].split(4, dim=-1)
    out = selective_scan_kernel(u, dt.abs(), -torch.rand(8, 4), b, c, SegmentLayout(SEQ_IDX).starts)
    assert out.shape == u.shape


@pytest.mark.kernels("cpu")
@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("headdim", [8, 16])
def test_mamba_ssm_in_the_interpreter_matches_float64(monkeypatch: pytest.MonkeyPatch, headdim: int) -> None:
    """The kernels of mamba-ssm, over segment borders, in values and all gradients."""
    if ssd_module.KERNEL.find() is None:
        pytest.skip("needs mamba-ssm")
    monkeypatch.setattr(torch.cuda, "device", lambda index: nullcontext())
    properties = SimpleNamespace(multi_processor_count=2)
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda device: properties)
    generator = torch.Generator().manual_seed(0)

    def draw(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator)

    heads, d_state, layout = 2, 16, SegmentLayout(SEQ_IDX)
    dt, rates = draw(B, L, heads).abs(), -draw(heads).exp()
    inputs = [draw(B, L, heads, headdim), dt, rates, draw(B, L, d_state), draw(B, L, d_state)]
    grad = draw(B, L, heads, headdim)
    results = []
    for compute, dtype in ((ssd_kernel, torch.float32), (ssd_ref, torch.float64)):
        leaves = [tensor.to(dtype).requires_grad_() for tensor in inputs]
        out = compute(*leaves, layout=layout)
        results.append([out.detach(), *torch.autograd.grad(out, leaves, grad.to(dtype))])
    for found, expected in zip(*results, strict=True):
        torch.testing.assert_close(found.double(), expected, rtol=0, atol=5e-6 * float(expected.abs().max()))
