"""The quick upper bound of an encoder's size."""

import hypothesis
from hypothesis import strategies as st

from longplay.models.base.config import EncoderConfig
from longplay.models.base.registry import ENCODERS
from longplay.models.encoder_size import EncoderTooLargeError, is_small, num_parameters
from longplay.models.inputs.spec import InputSpec

SIZES = st.integers(0, 22).map(lambda bits: 1 << bits)
CONFIGS = st.builds(
    EncoderConfig,
    model=st.sampled_from(["gru4rec", "sasrec", "mambarec", "recmamba", "moematrrec"]),
    mixer=st.sampled_from(["mamba", "mamba2"]),
    d_model=st.integers(0, 10).map(lambda bits: 1 << bits),
    num_blocks=st.integers(1, 4),
    num_heads=st.just(1),
    headdim=st.just(1),
    **{name: SIZES for name in ("context_length", "d_state", "d_conv", "expand", "d_ff")},
)
INPUTS = st.builds(
    lambda values, width, periods: InputSpec(
        categorical=(("a", values),), vector_width=width, time_gap="fourier" if periods else "bucket"
    ),
    values=SIZES,
    width=SIZES,
    periods=st.booleans(),
)


@hypothesis.given(config=CONFIGS, inputs=INPUTS)
@hypothesis.settings(max_examples=30)
def test_a_small_encoder_has_at_most_two_to_the_26_parameters(
    config: EncoderConfig, inputs: InputSpec
) -> None:
    try:
        too_many = num_parameters(config, inputs) > 1 << 26
    except EncoderTooLargeError:
        too_many = True
    if too_many:
        assert not is_small(config, inputs)


def test_usual_encoders_are_small() -> None:
    for model in ("gru4rec", "sasrec", "mambarec", "recmamba", "moematrrec"):
        assert model in ENCODERS
        assert is_small(EncoderConfig(model=model, context_length=5000, d_model=128, num_blocks=4))
