"""Keyed random numbers and keyed dropout."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from longplay.models.base.dropout import KeyedDropout
from longplay.models.base.keyed_random import fold_in, keyed_bits, keyed_integers, keyed_uniform, row_keys

_MASK = (1 << 64) - 1


def _splitmix64(key: int, index: int) -> int:
    """Return output `index` of the splitmix64 stream of `key`, computed with Python integers."""
    z = (key + (index + 1) * 0x9E3779B97F4A7C15) & _MASK
    z = ((z ^ (z >> 30)) * 0xBF58476D1CE4E5B9) & _MASK
    z = ((z ^ (z >> 27)) * 0x94D049BB133111EB) & _MASK
    return z ^ (z >> 31)


@given(key=st.integers(-(2**63), 2**63 - 1), stream=st.integers(0, 2**31))
@settings(max_examples=50, deadline=None)
def test_bits_match_splitmix64(key: int, stream: int) -> None:
    bits = keyed_bits(torch.tensor([key]), stream, 5)[0].tolist()
    base = _splitmix64(key & _MASK, stream)
    assert [b & _MASK for b in bits] == [_splitmix64(base, i) for i in range(5)]


def test_splitmix64_matches_the_published_stream() -> None:
    state, outputs = 1234567, [6457827717110365317, 3203168211198807973, 9817491932198370423]
    assert [_splitmix64(state, i) for i in range(3)] == outputs
    assert [int(fold_in(torch.tensor(state), i)) & _MASK for i in range(3)] == outputs


def test_row_keys_depend_on_every_argument() -> None:
    lanes, numbers = torch.arange(50).repeat_interleave(40), torch.arange(40).repeat(50)
    keys = torch.cat([row_keys(seed, step, lanes, numbers) for seed in (0, 1) for step in (0, 1, 2)])
    assert len(keys.unique()) == len(keys)


def test_each_bit_is_set_in_half_of_the_words() -> None:
    bits = keyed_bits(row_keys(3, 0, torch.arange(64), torch.zeros(64, dtype=torch.int64)), 1, 512).flatten()
    for position in range(64):
        share = ((bits >> position) & 1).double().mean().item()
        assert abs(share - 0.5) < 5 * 0.5 / len(bits) ** 0.5


def test_uniform_numbers_cover_the_unit_interval() -> None:
    values = keyed_uniform(torch.arange(100), 0, 1000)
    assert values.min() >= 0
    assert values.max() < 1
    counts = torch.histc(values.float(), bins=20, min=0, max=1)
    assert ((counts - 5000) ** 2 / 5000).sum() < 50  # chi square, 19 degrees of freedom


def test_integers_cover_every_value_below_the_bound() -> None:
    assert keyed_integers(torch.arange(10), 0, 200, 7).unique().tolist() == list(range(7))
    with pytest.raises(ValueError, match="bound=0"):
        keyed_integers(torch.arange(2), 0, 3, 0)


def _keys(count: int, seed: int = 0) -> torch.Tensor:
    return row_keys(seed, 7, torch.arange(count), torch.arange(count) + 3)


@pytest.mark.parametrize("width", [8, 13])
def test_mask_of_a_row_does_not_depend_on_batch_or_length(width: int) -> None:
    dropout, keys = KeyedDropout(0.4, layer_id=3), _keys(6)
    whole = dropout(torch.ones(6, 20, width), keys)
    assert torch.equal(dropout(torch.ones(1, 20, width), keys[4:5]), whole[4:5])
    assert torch.equal(dropout(torch.ones(6, 9, width), keys), whole[:, :9])


@pytest.mark.parametrize("p", [0.001, 0.1, 0.5, 0.9])
def test_dropout_drops_a_fraction_p_and_preserves_the_mean(p: float) -> None:
    num_elements = 64 * 100 * 32
    out = KeyedDropout(p, layer_id=1)(torch.ones(64, 100, 32), _keys(64))
    assert abs((out == 0).double().mean().item() - p) < 5 * (p * (1 - p) / num_elements) ** 0.5 + 2**-17
    assert out.double().mean().item() == pytest.approx(1.0, abs=0.02 + 0.02 * p / (1 - p))
    assert out[out != 0].unique().numel() == 1


def test_masks_of_layers_rows_slots_and_channels_are_independent() -> None:
    x = torch.ones(40, 50, 16)
    one, two = (KeyedDropout(0.5, layer_id=i)(x, _keys(40)) == 0 for i in (1, 2))
    for a, b in [(one, two), (one[1:], one[:-1]), (one[:, 1:], one[:, :-1]), (one[..., 1:], one[..., :-1])]:
        assert abs((a == b).double().mean().item() - 0.5) < 0.02


def test_dropout_gradient_is_the_mask_times_the_scale() -> None:
    x = torch.randn(3, 5, 6, requires_grad=True)
    out = KeyedDropout(0.3, layer_id=1)(x, _keys(3))
    out.sum().backward()
    assert x.grad is not None
    torch.testing.assert_close(x.grad * x.detach(), out.detach())


def test_dropout_is_off_in_eval_mode_and_at_zero() -> None:
    x = torch.randn(2, 3, 4)
    assert KeyedDropout(0.5, layer_id=1).eval()(x, None) is x
    assert KeyedDropout(0.0, layer_id=1)(x, None) is x


def test_dropout_rejects_invalid_probability_and_missing_keys() -> None:
    with pytest.raises(ValueError, match=r"dropout=1\.0"):
        KeyedDropout(1.0, layer_id=0)
    with pytest.raises(ValueError, match="row_keys"):
        KeyedDropout(0.5, layer_id=0)(torch.ones(1, 1, 1), None)


def test_dropout_does_not_change_the_global_generator() -> None:
    before = torch.get_rng_state()
    KeyedDropout(0.5, layer_id=1)(torch.ones(2, 3, 4), _keys(2))
    assert torch.equal(torch.get_rng_state(), before)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_cuda_bits_match_the_cpu() -> None:
    keys = _keys(32)
    assert torch.equal(keyed_bits(keys.cuda(), 5, 100).cpu(), keyed_bits(keys, 5, 100))
    dropout = KeyedDropout(0.3, layer_id=2)
    assert torch.equal(
        dropout(torch.ones(32, 9, 10).cuda(), keys.cuda()).cpu(), dropout(torch.ones(32, 9, 10), keys)
    )
