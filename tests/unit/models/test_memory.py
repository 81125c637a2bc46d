"""The formulas of what backward needs, against the tensors that autograd holds."""

from typing import Any

import pytest
import torch

from longplay.models.base.config import EncoderConfig
from longplay.models.base.segments import SegmentLayout
from longplay.models.build import build_encoder
from longplay.models.memory import encoder_slot_bytes

ROWS = 8


def held_by_autograd(config: EncoderConfig) -> tuple[float, float]:
    """Bytes per slot of all storages saved for backward, the weights aside; and the rectangles' padding."""
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
            held[storage.data_ptr()] = storage.nbytes(), tensor  # kept, so that no address is used twice
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        encoder(x, seq_idx, torch.arange(ROWS))
    rectangles = sum(segments * slots for segments, slots in SegmentLayout(seq_idx).buckets.shapes)
    slots = ROWS * length
    return sum(size for size, _ in held.values()) / slots, rectangles / slots


@pytest.mark.parametrize("model", ["gru4rec", "sasrec", "mambarec", "recmamba", "moematrrec"])
@pytest.mark.parametrize(
    "settings",
    [
        {},
        {"d_model": 32, "num_blocks": 3, "d_state": 16, "context_length": 100},
        {"d_model": 96, "expand": 1, "dropout": 0.0, "d_ff": 64},
        {"mixer": "mamba2"},
        {"mixer": "mamba2", "headdim": 16, "d_state": 16, "d_model": 96, "context_length": 90},
        {"scan_backend": "chunk", "context_length": 128},
    ],
    ids=["default", "deep", "plain", "mamba2", "mamba2 heads", "chunk"],
)
def test_the_formula_is_what_autograd_holds(model: Any, settings: dict[str, Any]) -> None:
    if model in ("gru4rec", "sasrec") and settings.keys() & {"mixer", "scan_backend"}:
        pytest.skip("has no state-space mixer")
    config = EncoderConfig(**{"model": model, "context_length": 200, "num_blocks": 1, **settings})
    held, padding = held_by_autograd(config)
    assert encoder_slot_bytes(config, padding=padding).saved == pytest.approx(held, rel=0.1)


def test_bf16_takes_less_and_the_kernels_absence_on_a_gpu_more() -> None:
    config = EncoderConfig(model="mambarec", context_length=200, scan_backend="chunk")
    wide = encoder_slot_bytes(config, padding=1.0)
    assert 0.5 < encoder_slot_bytes(config, padding=1.0, bf16=True).saved / wide.saved < 1
    assert encoder_slot_bytes(config, padding=1.0, device_type="cuda").passing > wide.passing
