"""Properties of all encoders: causality, segment separation, packing, and step against forward."""

from typing import Any

import pytest
import torch
from torch import Tensor

from longplay.models.base.config import EncoderConfig
from longplay.models.base.keyed_random import row_keys
from longplay.models.base.registry import ENCODERS
from longplay.models.encoder import SequenceEncoder, build_encoder

_WIDTH = 16
_SMALL: dict[str, Any] = {
    "d_model": _WIDTH,
    "num_blocks": 2,
    "d_state": 4,
    "headdim": 8,
    "context_length": 40,
    "dropout": 0.2,
}
_SWITCHES: list[dict[str, Any]] = [
    {},
    {"positional_embedding": True},
    {"positional_embedding": False, "layer_norm": False},
    {"residual": False},
    {"num_blocks": 1, "scan_backend": "chunk"},
]
_MODELS = ("gru4rec", "sasrec", "recmamba", "mambarec", "moematrrec")


def _cases() -> list[Any]:
    cases = []
    for model in _MODELS:
        extra: list[dict[str, Any]] = [{"mixer": "mamba2"}] if ENCODERS[model].uses_state_space else []
        if model == "moematrrec":
            extra += [{"gate": "top1"}, {"gate": "top1", "mixer": "mamba2", "positional_embedding": True}]
        for switches in _SWITCHES + extra:
            name = ",".join(f"{key}={value}" for key, value in switches.items()) or "default"
            cases.append(pytest.param({"model": model, **switches}, id=f"{model}-{name}"))
    return cases


def _encoder(**switches: Any) -> SequenceEncoder:
    return build_encoder(EncoderConfig(**{**_SMALL, **switches}), torch.Generator().manual_seed(5)).eval()


def _rows(lengths: list[list[int]], seed: int = 0) -> tuple[Tensor, Tensor]:
    """Return random embeddings (B, L, D) and seq_idx (B, L) of rows with segments of these lengths."""
    seq_idx = torch.stack(
        [torch.repeat_interleave(torch.arange(len(row)), torch.tensor(row)) for row in lengths]
    )
    x = torch.randn(*seq_idx.shape, _WIDTH, generator=torch.Generator().manual_seed(seed))
    return x, seq_idx.to(torch.int32)


@pytest.mark.parametrize("switches", _cases())
def test_outputs_do_not_depend_on_later_slots_or_other_segments(switches: dict[str, Any]) -> None:
    encoder = _encoder(**switches)
    x, seq_idx = _rows([[3, 17, 1, 19], [40], [1, 1, 2, 36]])
    with torch.no_grad():
        before = encoder(x, seq_idx)
        for row, slot in [(0, 0), (0, 2), (0, 5), (0, 20), (0, 30), (1, 0), (1, 17), (1, 39), (2, 3)]:
            changed = x.clone()
            changed[row, slot] += 3.0
            after = encoder(changed, seq_idx)
            slots = torch.arange(40)
            reached = torch.zeros(seq_idx.shape, dtype=torch.bool)
            reached[row] = (slots >= slot) & (seq_idx[row] == seq_idx[row, slot])
            assert torch.equal(after[~reached], before[~reached])
            assert not torch.equal(after[row, slot], before[row, slot])


@pytest.mark.parametrize("switches", _cases())
def test_packed_rows_match_separate_rows(switches: dict[str, Any]) -> None:
    encoder = _encoder(**switches)
    lengths = [[3, 18, 1, 18], [40]]
    x, seq_idx = _rows(lengths)
    x.requires_grad_()
    weights = torch.randn(x.shape, generator=torch.Generator().manual_seed(1))

    packed = encoder(x, seq_idx)
    packed_grads = torch.autograd.grad((packed * weights).sum(), [x, *encoder.parameters()])

    separate = torch.cat(
        [
            encoder(part.unsqueeze(0), torch.zeros(1, len(part), dtype=torch.int32)).squeeze(0)
            for row, row_lengths in zip(x, lengths, strict=True)
            for part in row.split(row_lengths)
        ]
    ).view_as(packed)
    separate_grads = torch.autograd.grad((separate * weights).sum(), [x, *encoder.parameters()])

    torch.testing.assert_close(packed, separate, rtol=1e-5, atol=1e-5)
    for ours, theirs in zip(packed_grads, separate_grads, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=1e-5 * float(theirs.abs().max() + 1))


@pytest.mark.parametrize("switches", _cases())
def test_selected_slots_match_the_full_forward(switches: dict[str, Any]) -> None:
    encoder = _encoder(**switches)
    x, seq_idx = _rows([[5, 20, 7], [12, 12, 8]])
    at = torch.tensor([4, 24, 31, 32 + 11, 0])
    with torch.no_grad():
        whole = encoder(x, seq_idx).flatten(0, 1)
        torch.testing.assert_close(encoder(x, seq_idx, at=at), whole[at], rtol=1e-5, atol=1e-5)
        assert encoder(x, seq_idx, at=at[:0]).shape == (0, _WIDTH)


def test_selecting_slots_requires_eval_mode() -> None:
    x, seq_idx = _rows([[4]])
    with pytest.raises(ValueError, match="eval mode"):
        _encoder(model="mambarec").train()(x, seq_idx, torch.zeros(1, dtype=torch.int64), torch.tensor([3]))


@pytest.mark.parametrize(
    "switches", [case for case in _cases() if ENCODERS[case.values[0]["model"]].recurrent]
)
def test_step_matches_the_full_forward(switches: dict[str, Any]) -> None:
    encoder = _encoder(**switches)
    num_slots = 45 if switches.get("positional_embedding") else 12  # beyond context_length = 40
    x, seq_idx = _rows([[num_slots], [num_slots]])
    with torch.no_grad():
        whole = encoder(x, seq_idx)
        state = encoder.init_state(2)
        for t in range(num_slots):
            hidden, state = encoder.step(x[:, t], state)
            torch.testing.assert_close(hidden, whole[:, t], rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("model", ["gru4rec", "recmamba", "mambarec"])
def test_prefill_stops_at_the_end_of_each_history(model: str) -> None:
    encoder = _encoder(model=model)
    x, seq_idx = _rows([[9], [9]])
    lengths = torch.tensor([8, 4])
    with torch.no_grad():
        whole = encoder(x, seq_idx)
        last, state = encoder.prefill(x, lengths)
        torch.testing.assert_close(last, whole[torch.arange(2), lengths - 1], rtol=1e-5, atol=1e-5)
        after, state = encoder.step(x[torch.arange(2), lengths], state)
        torch.testing.assert_close(after, whole[torch.arange(2), lengths], rtol=1e-5, atol=1e-5)
    assert state.position.tolist() == [9, 5]


@pytest.mark.parametrize("model", ["sasrec", "moematrrec"])
def test_step_of_an_attention_model_raises(model: str) -> None:
    encoder = _encoder(model=model)
    assert not encoder.recurrent
    with pytest.raises(TypeError, match="not recurrent; use one of gru4rec, mambarec, recmamba"):
        encoder.init_state(1)


@pytest.mark.parametrize("model", _MODELS)
def test_training_output_of_a_row_does_not_depend_on_its_batch(model: str) -> None:
    encoder = _encoder(model=model).train()
    x, seq_idx = _rows([[3, 37], [40], [20, 20]])
    keys = row_keys(0, 1, torch.arange(3), torch.arange(3))
    together = encoder(x, seq_idx, keys)
    alone = encoder(x[2:], seq_idx[2:], keys[2:])
    torch.testing.assert_close(alone, together[2:], rtol=1e-5, atol=1e-5)
    assert not torch.equal(together, encoder(x, seq_idx, keys + 1))


@pytest.mark.parametrize("model", _MODELS)
def test_initial_weights_depend_only_on_the_generator(model: str) -> None:
    config = EncoderConfig(**_SMALL, model=model)
    before = torch.get_rng_state()
    one = build_encoder(config, torch.Generator().manual_seed(3)).state_dict()
    two = build_encoder(config, torch.Generator().manual_seed(3)).state_dict()
    other = build_encoder(config, torch.Generator().manual_seed(4)).state_dict()
    assert torch.equal(torch.get_rng_state(), before)
    assert all(torch.equal(one[name], two[name]) for name in one)
    assert any(not torch.equal(one[name], other[name]) for name in one)


@pytest.mark.parametrize("model", _MODELS)
def test_rows_of_one_slot_are_encoded(model: str) -> None:
    encoder = _encoder(model=model)
    assert encoder(torch.randn(1, 1, _WIDTH), torch.zeros(1, 1, dtype=torch.int32)).shape == (1, 1, _WIDTH)


@pytest.mark.parametrize(
    "switches", [{"model": m} for m in _MODELS] + [{"model": "mambarec", "mixer": "mamba2"}]
)
def test_bfloat16_parameters_get_finite_gradients(switches: dict[str, Any]) -> None:
    encoder = _encoder(**switches)
    x, seq_idx = _rows([[3, 37], [40]])
    exact = encoder(x, seq_idx)
    rounded = encoder.bfloat16()(x.bfloat16(), seq_idx)
    assert rounded.dtype == torch.bfloat16
    torch.testing.assert_close(rounded.float(), exact, rtol=0.1, atol=0.1)
    rounded.float().square().sum().backward()
    assert all(p.grad is None or bool(p.grad.isfinite().all()) for p in encoder.parameters())


def test_gate_weights_sum_to_one_and_to_less_with_top1() -> None:
    x, seq_idx = _rows([[3, 37], [40]])
    soft, top1 = _encoder(model="moematrrec"), _encoder(model="moematrrec", gate="top1")
    soft(x, seq_idx)
    top1(x, seq_idx)
    assert set(soft.gate_weights()) == {
        f"block{b}/{branch}" for b in (0, 1) for branch in ("mamba", "attention")
    }
    assert sum(soft.gate_weights().values()) == pytest.approx(2.0, abs=1e-5)
    assert 1.0 <= sum(top1.gate_weights().values()) < 2.0
    assert _encoder(model="sasrec").gate_weights() == {}


def test_mismatched_shapes_raise() -> None:
    with pytest.raises(ValueError, match="must be"):
        _encoder(model="mambarec")(torch.zeros(2, 3, _WIDTH), torch.zeros(2, 4, dtype=torch.int32))


@pytest.mark.parametrize(
    ("field", "value", "rule"),
    [
        ("model", "bert4rec", "unknown; did you mean gru4rec"),
        ("context_length", 0, "greater than or equal to 1"),
        ("dropout", 1.0, "less than 1"),
        ("input_dropout", -0.1, "greater than or equal to 0"),
        ("num_heads", 5, "nearest valid: 4"),
        ("input_scale", 0.0, "greater than 0"),
        ("d_ff", 0, "greater than or equal to 1"),
    ],
)
def test_invalid_setting_raises_with_its_name_and_bound(field: str, value: Any, rule: str) -> None:
    with pytest.raises(ValueError, match=rf"{field}\W[^.]*{rule}"):
        EncoderConfig(**{**_SMALL, "model": "sasrec", field: value})


def test_invalid_headdim_raises_with_the_nearest_divisor() -> None:
    with pytest.raises(ValueError, match=r"headdim=7: .* nearest valid: 8"):
        EncoderConfig(**{**_SMALL, "model": "mambarec", "mixer": "mamba2", "headdim": 7})
