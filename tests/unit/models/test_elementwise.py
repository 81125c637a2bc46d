"""The C++ softplus and skip_and_gate match PyTorch in float64."""

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from longplay.models.mixers import elementwise

CHANNELS = 24
pytestmark = pytest.mark.skipif(not elementwise.is_available(CHANNELS), reason="needs a C++ compiler")


def random(*shape: int, scale: float = 1.0) -> Tensor:
    return (scale * torch.randn(*shape, generator=torch.Generator().manual_seed(sum(shape)))).requires_grad_()


def in_float64(tensors: list[Tensor]) -> list[Tensor]:
    return [tensor.detach().double().requires_grad_() for tensor in tensors]


def skip_and_gate_ref(y: Tensor, u: Tensor, D: Tensor, z: Tensor) -> Tensor:
    return (y + D * u) * F.silu(z)


@pytest.mark.parametrize("shape", [(3, 700), (5,)])
@pytest.mark.parametrize("scale", [1.0, 40.0])
def test_values_and_gradients_match_float64(shape: tuple[int, ...], scale: float) -> None:
    x, bias = random(*shape, CHANNELS, scale=scale), random(CHANNELS)
    both = random(*shape, 2 * CHANNELS, scale=scale)
    y, u, D = random(*shape, CHANNELS), random(*shape, CHANNELS), random(CHANNELS)
    cases = (
        (elementwise.softplus, lambda x, bias: F.softplus(x + bias), [x, bias]),
        (
            lambda y, u, D, both: elementwise.skip_and_gate(y, u, D, both.chunk(2, -1)[1]),
            lambda y, u, D, both: skip_and_gate_ref(y, u, D, both.chunk(2, -1)[1]),
            [y, u, D, both],
        ),
    )
    for function, reference, inputs in cases:
        wide = in_float64(inputs)
        found, expected = function(*inputs), reference(*wide)
        torch.testing.assert_close(found, expected.float(), rtol=2e-6, atol=1e-6)
        weights = random(*found.shape).detach()
        grads = torch.autograd.grad((found * weights).sum(), inputs)
        expected_grads = torch.autograd.grad((expected * weights.double()).sum(), wide)
        for ours, theirs in zip(grads, expected_grads, strict=True):
            torch.testing.assert_close(ours, theirs.float(), rtol=1e-5, atol=1e-5 * float(theirs.abs().max()))


def test_small_softplus_values_keep_relative_precision() -> None:
    x = torch.linspace(-80, 0, 8 * 500).view(-1, 8)
    found = elementwise.softplus(x, torch.zeros(8))
    torch.testing.assert_close(found, F.softplus(x.double()).float(), rtol=2e-5, atol=0)


def test_non_finite_inputs_propagate() -> None:
    x = torch.zeros(1, 8)
    x[0, :3] = torch.tensor([torch.nan, torch.inf, -torch.inf])
    found = elementwise.softplus(x, torch.zeros(8))[0]
    assert found[0].isnan()
    assert found[1] == torch.inf
    assert found[2] < 1e-37
    one = torch.ones(1, 8)
    assert elementwise.skip_and_gate(one, one, one[0], x)[0, 0].isnan()
    assert elementwise.skip_and_gate(x, one, one[0], one)[0, :2].isfinite().tolist() == [False, False]


def test_results_are_bitwise_equal_for_any_thread_count() -> None:
    threads, results = torch.get_num_threads(), []
    inputs = [random(2, 900, CHANNELS), random(2, 900, CHANNELS), random(CHANNELS), random(2, 900, CHANNELS)]
    try:
        for number in (1, 2, 3):
            torch.set_num_threads(number)
            out = elementwise.skip_and_gate(*inputs)
            step = elementwise.softplus(inputs[0], inputs[2])
            results.append([out, step, *torch.autograd.grad((out * step).sum(), inputs)])
    finally:
        torch.set_num_threads(threads)
    for other in results[1:]:
        assert all(torch.equal(a, b) for a, b in zip(results[0], other, strict=True))
