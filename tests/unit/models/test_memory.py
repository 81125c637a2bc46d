"""The activation memory formulas match the tensors saved by autograd."""

from typing import Any

import pytest
import torch

from longplay.models.base.activations import Execution
from longplay.models.base.config import EncoderConfig
from longplay.models.base.registry import ENCODERS
from longplay.models.base.segments import SegmentLayout
from longplay.models.encoder import build_encoder
from longplay.models.encoder_size import activation_bytes

ROWS = 8


def saved_by_autograd(config: EncoderConfig) -> tuple[float, float]:
    """Return the bytes per slot of all storages saved for the backward, without weights, and the padding."""
    encoder = build_encoder(config).train()
    length = config.context_length
    cuts = torch.rand(ROWS, 3, generator=torch.Generator().manual_seed(1))
    seq_idx = (torch.arange(length) / length > cuts.unsqueeze(2)).sum(1).int()
    x = torch.zeros(ROWS, length, config.d_model).requires_grad_()
    ours = {parameter.untyped_storage().data_ptr() for parameter in encoder.parameters()}
    held: dict[int, tuple[int, torch.Tensor]] = {}

    def pack(tensor: torch.Tensor) -> torch.Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in ours:
            held[storage.data_ptr()] = (
                storage.nbytes(),
                tensor,
            )  # keep the tensor, so that its address is not reused
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        encoder(x, seq_idx, torch.arange(ROWS))
    rectangles = sum(segments * slots for segments, slots in SegmentLayout(seq_idx).buckets.shapes)
    slots = ROWS * length
    return sum(size for size, _ in held.values()) / slots, rectangles / slots


MODELS = ("gru4rec", "sasrec", "mambarec", "recmamba", "moematrrec")
SHAPES: dict[str, dict[str, Any]] = {
    "default": {},
    "deep": {"d_model": 32, "num_blocks": 3, "d_state": 16, "context_length": 100},
    "plain": {"d_model": 96, "expand": 1, "dropout": 0.0, "d_ff": 64},
}
MIXERS: dict[str, dict[str, Any]] = {
    "mamba2": {"mixer": "mamba2"},
    "mamba2 heads": {"mixer": "mamba2", "headdim": 16, "d_state": 16, "d_model": 96, "context_length": 90},
    "chunk": {"scan_backend": "chunk", "context_length": 128},
    "triton": {"scan_backend": "triton", "d_model": 8, "d_state": 4, "context_length": 40},
}
CASES = [
    pytest.param(
        model, settings, id=f"{model}-{name}", marks=[pytest.mark.kernels("cpu")] if name == "triton" else []
    )
    for model in MODELS
    for name, settings in (SHAPES | (MIXERS if ENCODERS[model].uses_state_space else {})).items()
]


@pytest.mark.parametrize(("model", "settings"), CASES)
def test_formula_matches_the_memory_saved_by_autograd(model: str, settings: dict[str, Any]) -> None:
    config = EncoderConfig(**{"model": model, "context_length": 200, "num_blocks": 1, **settings})
    held, padding = saved_by_autograd(config)
    assert activation_bytes(config, Execution(padding=padding)).saved == pytest.approx(held, rel=0.1)


def test_bf16_needs_less_memory_and_the_chunked_scan_on_cuda_more() -> None:
    config = EncoderConfig(model="mambarec", context_length=200, scan_backend="chunk")
    wide = activation_bytes(config, Execution())
    assert 0.5 < activation_bytes(config, Execution(bf16=True)).saved / wide.saved < 1
    assert activation_bytes(config, Execution(device_type="cuda")).transient > wide.transient
