"""Properties of the input stage in all encoders: causality, segments, packing, step, and missing values."""

from __future__ import annotations

import datetime
import math
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from longplay.models.base.config import EncoderConfig
from longplay.models.base.registry import ENCODERS
from longplay.models.encoder import SequenceEncoder, build_encoder
from longplay.models.encoder_size import num_parameters
from longplay.models.inputs.spec import NO_TIME, NUM_GAP_BUCKETS, InputSpec
from longplay.models.inputs.stage import gap_buckets, gap_waves, hour_and_weekday, missing_inputs

WIDTH = 16
SPEC = InputSpec(
    categorical=(("genre", 5), ("device", 2)),
    floats=(("price", 10.0, 2.0), ("rating", 3.0, 0.0)),
    time_gap="bucket",
    ticks_per_s=1,
    item_categories=(("artist", 7),),
    vector_width=3,
)
FOURIER = InputSpec(time_gap="fourier")
MODELS = list(ENCODERS)
INT64 = st.integers(-(2**63) + 1, 2**63 - 1)


def encoder_with(spec: InputSpec, model: str, **settings: Any) -> SequenceEncoder:
    config = EncoderConfig(
        **{"model": model, "d_model": WIDTH, "d_state": 4, "headdim": 8, "context_length": 40, **settings}
    )
    return build_encoder(config, torch.Generator().manual_seed(5), inputs=spec).eval()


def rows(lengths: list[list[int]]) -> tuple[Tensor, Tensor, dict[str, Tensor]]:
    """Return random embeddings, seq_idx and inputs of rows with segments of these lengths."""
    numbers = [torch.repeat_interleave(torch.arange(len(row)), torch.tensor(row)) for row in lengths]
    seq_idx = torch.stack(numbers).to(torch.int32)
    shape, generator = seq_idx.shape, torch.Generator().manual_seed(0)

    def integers(most: int) -> Tensor:
        return torch.randint(0, most, shape, generator=generator)

    price = 10 + torch.randn(shape, generator=generator)
    inputs = {
        "feature_genre": integers(6).int(),
        "feature_device": integers(3).int(),
        "feature_price": torch.where(integers(4) == 0, math.nan, price),
        "feature_rating": torch.full(shape, 3.0),
        "times": 1_600_000_000 + integers(200_000).cumsum(1),
        "item_artist": integers(8).int(),
        "item_vectors": torch.randn(*shape, 3, generator=generator),
    }
    return torch.randn(*shape, WIDTH, generator=generator), seq_idx, inputs


def changed(inputs: dict[str, Tensor], key: str, row: int, slot: int) -> dict[str, Tensor]:
    """Return the inputs with another value at one slot."""
    values = inputs[key].clone()
    if values.dtype == torch.int32:
        values[row, slot] = 1 if values[row, slot] == 2 else 2
    else:
        values[row, slot] = 3.25 if values.is_floating_point() else values[row, slot] + 7_000_000
    return inputs | {key: values}


@pytest.mark.parametrize("spec", [SPEC, FOURIER], ids=["all", "fourier"])
@pytest.mark.parametrize("model", MODELS)
def test_an_input_reaches_only_its_own_and_later_slots_of_its_segment(model: str, spec: InputSpec) -> None:
    encoder = encoder_with(spec, model)
    x, seq_idx, inputs = rows([[3, 17, 1, 19], [40]])
    slots = torch.arange(40)
    with torch.no_grad():
        before = encoder(x, seq_idx, inputs=inputs)
        for key in missing_inputs(spec, (1,), x.device):
            for row, slot in [(0, 0), (0, 2), (0, 5), (0, 20), (0, 30), (1, 17), (1, 39)]:
                after = encoder(x, seq_idx, inputs=changed(inputs, key, row, slot))
                reached = torch.zeros(seq_idx.shape, dtype=torch.bool)
                reached[row] = (slots >= slot) & (seq_idx[row] == seq_idx[row, slot])
                assert torch.equal(after[~reached], before[~reached]), key
                no_gap = spec is FOURIER and slot in (0, 20)  # the first slot of a segment
                assert torch.equal(after[row, slot], before[row, slot]) == no_gap, key


@pytest.mark.parametrize("spec", [SPEC, FOURIER], ids=["all", "fourier"])
@pytest.mark.parametrize("model", MODELS)
def test_packed_rows_match_separate_rows(model: str, spec: InputSpec) -> None:
    encoder = encoder_with(spec, model)
    lengths = [[3, 18, 1, 18], [40]]
    x, seq_idx, inputs = rows(lengths)
    packed = encoder(x, seq_idx, inputs=inputs)
    separate = []
    for row, parts in enumerate(lengths):
        begin = 0
        for length in parts:
            part = slice(begin, begin + length)
            alone = {key: values[row : row + 1, part] for key, values in inputs.items()}
            number = torch.zeros(1, length, dtype=torch.int32)
            separate.append(encoder(x[row : row + 1, part], number, inputs=alone).squeeze(0))
            begin += length
    torch.testing.assert_close(packed, torch.cat(separate).view_as(packed), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("spec", [SPEC, FOURIER], ids=["all", "fourier"])
@pytest.mark.parametrize("model", [model for model in MODELS if ENCODERS[model].recurrent])
def test_step_and_prefill_match_the_full_forward(model: str, spec: InputSpec) -> None:
    encoder = encoder_with(spec, model)
    x, seq_idx, inputs = rows([[12], [12]])
    with torch.no_grad():
        whole = encoder(x, seq_idx, inputs=inputs)
        state = encoder.init_state(2)
        for t in range(12):
            now = {key: values[:, t] for key, values in inputs.items()}
            hidden, state = encoder.step(x[:, t], state, now)
            torch.testing.assert_close(hidden, whole[:, t], rtol=1e-5, atol=1e-5)
        lengths, every = torch.tensor([11, 4]), torch.arange(2)
        last, state = encoder.prefill(x, lengths, inputs)
        torch.testing.assert_close(last, whole[every, lengths - 1], rtol=1e-5, atol=1e-5)
        now = {key: values[every, lengths] for key, values in inputs.items()}
        after, _ = encoder.step(x[every, lengths], state, now)
        torch.testing.assert_close(after, whole[every, lengths], rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("model", MODELS)
def test_without_inputs_nothing_is_added(model: str) -> None:
    plain, staged = encoder_with(InputSpec(), model), encoder_with(SPEC, model)
    assert plain.input_stage is None
    weights = staged.state_dict()
    assert all(torch.equal(value, weights[name]) for name, value in plain.state_dict().items())


def test_missing_values_add_nothing() -> None:
    spec = InputSpec(
        categorical=SPEC.categorical,
        floats=SPEC.floats,
        time_gap="fourier",
        ticks_per_s=1,
        item_categories=SPEC.item_categories,
        vector_width=3,
    )
    plain, staged = encoder_with(InputSpec(), "sasrec"), encoder_with(spec, "sasrec")
    x, seq_idx, inputs = rows([[12, 8]])
    inputs = missing_inputs(spec, tuple(seq_idx.shape), x.device)
    assert torch.equal(staged(x, seq_idx, inputs=inputs), plain(x, seq_idx))


def test_the_vector_of_missing_values_is_not_trained() -> None:
    encoder = encoder_with(SPEC, "gru4rec")
    x, seq_idx, inputs = rows([[20, 20]])
    encoder(x, seq_idx, inputs=inputs).square().sum().backward()
    assert encoder.input_stage is not None
    for name, parameter in encoder.input_stage.named_parameters():
        assert parameter.grad is not None
        assert parameter.grad.isfinite().all()
        assert parameter.grad.any(), name
        if name.startswith("embeddings") or "hour" in name:
            assert not parameter.grad[0].any()
            assert not parameter[0].any()


def test_an_encoder_with_an_input_stage_refuses_items_alone() -> None:
    x, seq_idx, _ = rows([[5]])
    with pytest.raises(ValueError, match="inputs=None: this encoder has an input stage"):
        encoder_with(SPEC, "mambarec")(x, seq_idx)


def test_parameters_are_counted() -> None:
    config = EncoderConfig(model="gru4rec", context_length=8, d_model=WIDTH)
    tables = (6 + 3 + 8 + NUM_GAP_BUCKETS + 25 + 8) * WIDTH
    assert num_parameters(config, SPEC) - num_parameters(config) == tables + (2 + 3) * WIDTH


@settings(deadline=None)
@given(
    gap=st.one_of(st.integers(0, 2**53), st.sampled_from([2**k - d for k in range(1, 53) for d in (0, 1)]))
)
def test_a_bucket_is_the_number_of_bits_of_the_gap(gap: int) -> None:
    times = torch.tensor([1000 + gap, 5, NO_TIME])
    previous = torch.tensor([1000, NO_TIME, 5])
    assert gap_buckets(times, previous).tolist() == [1 + gap.bit_length(), 0, 0]
    waves = gap_waves(times, previous)
    assert waves[0].norm() == pytest.approx(1, abs=1e-5)
    assert not waves[1:].any()


@settings(deadline=None)
@given(first=INT64, second=INT64)
def test_any_two_times_have_a_bucket(first: int, second: int) -> None:
    first, second = min(first, second), max(first, second)
    (bucket,) = gap_buckets(torch.tensor([second]), torch.tensor([first])).tolist()
    exact = 1 + (second - first).bit_length()
    assert bucket in (min(exact, NUM_GAP_BUCKETS - 1), min(exact + 1, NUM_GAP_BUCKETS - 1))
    assert gap_waves(torch.tensor([second]), torch.tensor([first])).isfinite().all()


@given(second=st.integers(-(10**10), 10**11), ticks=st.sampled_from([1, 10**3, 10**6]))
def test_hour_and_weekday_are_those_of_the_calendar(second: int, ticks: int) -> None:
    date = datetime.datetime(1970, 1, 1, tzinfo=datetime.UTC) + datetime.timedelta(seconds=second)
    hour, weekday = hour_and_weekday(torch.tensor([second * ticks + ticks // 2, NO_TIME]), ticks)
    assert (hour.tolist(), weekday.tolist()) == ([date.hour + 1, 0], [date.isoweekday(), 0])


@pytest.mark.parametrize("spec", [SPEC, FOURIER], ids=["all", "fourier"])
def test_the_memory_formula_matches_what_autograd_saves(spec: InputSpec) -> None:
    def saved(spec: InputSpec) -> int:
        """Return the bytes of all storages saved for the backward, without weights and input tensors."""
        encoder = encoder_with(spec, "gru4rec").train()
        x, seq_idx, inputs = rows([[40]] * 8)
        used = {key: inputs[key] for key in missing_inputs(spec, (1,), x.device)}
        known = [*encoder.parameters(), *encoder.buffers(), *used.values()]
        ours = {tensor.untyped_storage().data_ptr() for tensor in known}
        held: dict[int, tuple[int, Tensor]] = {}

        def pack(tensor: Tensor) -> Tensor:
            storage = tensor.untyped_storage()
            if storage.data_ptr() not in ours:
                held[storage.data_ptr()] = (storage.nbytes(), tensor)  # keeps its address from being reused
            return tensor

        with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
            encoder(x.requires_grad_(), seq_idx, torch.arange(8), inputs=used)
        return sum(size for size, _ in held.values())

    per_slot = (saved(spec) - saved(InputSpec())) / (8 * 40)
    assert per_slot == pytest.approx(spec.saved_bytes(bf16=False), rel=0.1)
