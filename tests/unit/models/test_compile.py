"""torch.compile gives the same results as the encoder itself, with each backend of the mixers."""

from typing import Any

import pytest
import torch
from torch import Tensor

from longplay.models.base.config import EncoderConfig
from longplay.models.encoder import build_encoder

pytestmark = [
    pytest.mark.filterwarnings("ignore"),  # the compiler of PyTorch warns about itself
    pytest.mark.filterwarnings("error:Dynamo does"),  # it traces into C
    pytest.mark.filterwarnings("error:Dynamo detected a call"),  # it traces into a cached function
]
L, D = 12, 16


def outputs_and_gradients(compiled: bool, batches: tuple[int, ...], **settings: Any) -> list[Tensor]:
    """Return outputs and gradients of batches of these numbers of rows."""
    config = EncoderConfig(context_length=L, d_model=D, num_blocks=1, **settings)
    encoder = build_encoder(config).train()
    if compiled:
        torch.compiler.reset()
        encoder.compile(backend="aot_eager")  # without code generation, which is PyTorch's own matter
    results = []
    generator = torch.Generator().manual_seed(1)
    for num_rows in batches:
        x = torch.randn(num_rows, L, D, generator=generator).requires_grad_()
        seq_idx = (torch.arange(L) // 5).to(torch.int32).expand(num_rows, L).contiguous()
        out = encoder(x, seq_idx, torch.arange(num_rows))
        out.pow(3).sum().backward()  # a norm of constant length has no gradient of the square
        assert x.grad is not None
        results += [out.detach(), x.grad]
    return results + [parameter.grad for parameter in encoder.parameters() if parameter.grad is not None]


def assert_compiled_is_same(*batches: int, **settings: Any) -> None:
    expected = outputs_and_gradients(False, batches, **settings)
    for found, other in zip(outputs_and_gradients(True, batches, **settings), expected, strict=True):
        torch.testing.assert_close(found, other, rtol=1e-5, atol=1e-5 * float(other.abs().max()))


def test_a_compiled_encoder_gives_the_same_results() -> None:
    assert_compiled_is_same(3, model="moematrrec")  # Mamba and attention


def test_a_compiled_mamba2_gives_the_same_results_for_batches_of_several_sizes() -> None:
    assert_compiled_is_same(3, 5, model="mambarec", mixer="mamba2", headdim=8)


@pytest.mark.kernels("cpu")
def test_a_compiled_encoder_calls_the_triton_kernels() -> None:
    assert_compiled_is_same(3, model="mambarec", d_state=4, scan_backend="triton")
