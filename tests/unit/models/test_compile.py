"""torch.compile gives the same results as the encoder itself, with each backend of the mixers."""

import importlib.util
from typing import Any

import pytest
import torch
from support.triton_interpreter import assert_tests_pass_in_the_interpreter, combine_slices
from torch import Tensor

from longplay.models.base.config import EncoderConfig
from longplay.models.encoder import build_encoder
from longplay.native.triton_runtime import can_run_triton

pytestmark = [
    pytest.mark.filterwarnings("ignore"),  # the compiler of PyTorch warns about itself
    pytest.mark.filterwarnings("error:Dynamo does"),  # it traces into C
    pytest.mark.filterwarnings("error:Dynamo detected a call"),  # it traces into a cached function
]
IN_INTERPRETER = can_run_triton("cpu")
L, D = 12, 16


def outputs_and_gradients(compiled: bool, **settings: Any) -> list[Tensor]:
    """Return outputs and gradients of two batches of different sizes."""
    config = EncoderConfig(context_length=L, d_model=D, num_blocks=1, **settings)
    encoder = build_encoder(config).train()
    if compiled:
        torch.compiler.reset()
        encoder.compile(backend="aot_eager")  # without code generation, which is PyTorch's own matter
    results = []
    generator = torch.Generator().manual_seed(1)
    for num_rows in (3, 5):
        x = torch.randn(num_rows, L, D, generator=generator).requires_grad_()
        seq_idx = (torch.arange(L) // 5).to(torch.int32).expand(num_rows, L).contiguous()
        out = encoder(x, seq_idx, torch.arange(num_rows))
        out.pow(3).sum().backward()  # a norm of constant length has no gradient of the square
        assert x.grad is not None
        results += [out.detach(), x.grad]
    return results + [parameter.grad for parameter in encoder.parameters() if parameter.grad is not None]


def assert_compiled_is_same(**settings: Any) -> None:
    expected = outputs_and_gradients(compiled=False, **settings)
    for found, other in zip(outputs_and_gradients(compiled=True, **settings), expected, strict=True):
        torch.testing.assert_close(found, other, rtol=1e-5, atol=1e-5 * float(other.abs().max()))


@pytest.mark.skipif(IN_INTERPRETER, reason="the interpreter runs the kernels")
def test_a_compiled_encoder_gives_the_same_results() -> None:
    assert_compiled_is_same(model="moematrrec")  # Mamba and attention


@pytest.mark.skipif(IN_INTERPRETER, reason="the interpreter runs the kernels")
def test_a_compiled_mamba2_gives_the_same_results() -> None:
    assert_compiled_is_same(model="mambarec", mixer="mamba2", headdim=8)


@pytest.mark.skipif(not IN_INTERPRETER, reason="needs TRITON_INTERPRET=1: run in a process of its own")
def test_a_compiled_encoder_calls_the_triton_kernels() -> None:
    combine_slices()
    assert_compiled_is_same(model="mambarec", d_state=4, scan_backend="triton")


@pytest.mark.skipif(importlib.util.find_spec("triton") is None, reason="needs triton")
def test_in_the_interpreter() -> None:
    """Run the test of the Triton kernels in a process with TRITON_INTERPRET=1."""
    if not IN_INTERPRETER:
        assert_tests_pass_in_the_interpreter(__file__, "-k", "triton_kernels")
