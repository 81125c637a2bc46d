"""The configuration shared by all encoders. Importing this module does not import torch."""

import dataclasses
import difflib
from typing import Any, Literal, TypeVar

from pydantic import TypeAdapter, ValidationError

from longplay.common.settings import Count, PositiveFloat, Probability, UpToThousand, settings_class
from longplay.models.base.registry import ENCODERS, EncoderEntry

MixerName = Literal["mamba", "mamba2"]
GateName = Literal["soft", "top1"]
ScanName = Literal["auto", "chunk", "cpp", "kernel", "ref", "triton"]
ActivationName = Literal["gelu", "relu", "silu"]
Options = TypeVar("Options")
_SEARCHED = 10_000  # values on each side of an invalid one, among which the nearest valid one is searched


@settings_class
class EncoderConfig:
    """Architecture of the encoder.

    Attributes:
        model: Name of the encoder.
        context_length: Slots in a row, and number of learned positions.
        d_model: Width of item embeddings and hidden states.
        num_blocks: Number of blocks. For gru4rec, the number of GRU layers.
        dropout: Dropout probability inside the blocks.
        input_dropout: Dropout probability on the item embeddings. None = `dropout`.
        input_scale: Factor on the item embeddings. None = sqrt(d_model).
        positional_embedding: Add learned position embeddings, counted from the start of each segment. None =
            only for the models with attention (sasrec, moematrrec).
        layer_norm: Use layer norms in the blocks and after the last one. Disable for ablations only.
        residual: Use skip connections around mixers and feed-forwards. Disable for ablations only.
        mixer: State-space layer of recmamba, mambarec and moematrrec.
        d_state: State size of the mixer per channel.
        d_conv: Taps of the mixer's causal convolution.
        expand: Inner width of the mixer as a multiple of d_model.
        headdim: Channels per head of mamba2.
        num_heads: Attention heads of sasrec and moematrrec.
        d_ff: Inner width of the feed-forward. None = 4 * d_model.
        activation: Activation of the feed-forward.
        gate: How moematrrec combines its branches. soft = weighted sum of both; top1 = the branch with the
            higher gate probability, scaled by it.
        scan_backend: Implementation of the mixer's recurrence and convolution. auto = triton on CUDA; on a
            CPU cpp if a compiler is available, otherwise chunk.
        options: Options declared by a custom encoder, for example --encoder.options.rank 8.
    """

    model: str
    context_length: Count
    d_model: Count = 64
    num_blocks: UpToThousand = 2
    dropout: Probability = 0.2
    input_dropout: Probability | None = None
    input_scale: PositiveFloat | None = None
    positional_embedding: bool | None = None
    layer_norm: bool = True
    residual: bool = True
    mixer: MixerName = "mamba"
    d_state: Count = 32
    d_conv: Count = 4
    expand: Count = 2
    headdim: Count = 32
    num_heads: Count = 2
    d_ff: Count | None = None
    activation: ActivationName = "gelu"
    gate: GateName = "soft"
    scan_backend: ScanName = "auto"
    options: dict[str, Any] = dataclasses.field(default_factory=dict, hash=False)

    def __post_init__(self) -> None:
        if self.model not in ENCODERS:
            raise ValueError(f"model={self.model!r}: {ENCODERS.hint(self.model)}")
        if self.entry.uses_attention:
            _check_divides("num_heads", self.num_heads, "d_model", self.d_model)
        if self.entry.uses_state_space and self.mixer == "mamba2":
            _check_divides("headdim", self.headdim, "expand * d_model", self.inner_width)
        _check_options(self.model, self.entry.options_type, self.options)

    @property
    def entry(self) -> EncoderEntry:
        """The registry entry of `model`."""
        return ENCODERS[self.model]

    @property
    def has_positions(self) -> bool:
        """Whether learned positions are added to the item embeddings."""
        if self.positional_embedding is None:
            return self.entry.learned_positions
        return self.positional_embedding

    @property
    def input_dropout_p(self) -> float:
        """The dropout probability on the item embeddings."""
        return self.dropout if self.input_dropout is None else self.input_dropout

    @property
    def embedding_scale(self) -> float:
        """The factor on the item embeddings."""
        return self.d_model**0.5 if self.input_scale is None else self.input_scale

    @property
    def feed_forward_width(self) -> int:
        """The inner width of the feed-forward."""
        return 4 * self.d_model if self.d_ff is None else self.d_ff

    @property
    def inner_width(self) -> int:
        """The inner width of the state-space mixer."""
        return self.expand * self.d_model

    def options_as(self, options_type: type[Options]) -> Options:
        """Return `options` as an instance of the encoder's options dataclass, including its defaults."""
        return TypeAdapter(options_type).validate_python(self.options)


def _check_divides(name: str, value: int, whole_name: str, whole: int) -> None:
    if whole % value == 0:
        return
    candidates = range(max(1, value - _SEARCHED), min(whole, value + _SEARCHED) + 1)
    divisors = [d for d in candidates if whole % d == 0]
    nearest = min(divisors, key=lambda d: abs(d - value), default=None)
    hint = "" if nearest is None else f"; nearest valid: {nearest}"
    raise ValueError(f"{name}={value}: must divide {whole_name} = {whole}{hint}")


def _check_options(model: str, options_type: type | None, options: dict[str, Any]) -> None:
    """Validate the options of a custom encoder.

    Raises:
        ValueError: an option is unknown, missing or of the wrong type.
    """
    names = [] if options_type is None else [item.name for item in dataclasses.fields(options_type)]
    for name in options:
        if name not in names:
            near = difflib.get_close_matches(name, names, n=1)
            nearest = f"did you mean options.{near[0]}? " if near else ""
            raise ValueError(
                f"options.{name}: unknown; {nearest}options of {model}: {', '.join(names) or 'none'}"
            )
    if options_type is None:
        return
    try:
        TypeAdapter(options_type).validate_python(options)
    except ValidationError as error:
        first = error.errors()[0]
        place = ".".join(["options", *map(str, first["loc"])])
        shown = "" if first["type"] == "missing" or not first["loc"] else f"={first['input']!r}"
        raise ValueError(f"{place}{shown}: {first['msg'].removeprefix('Value error, ')}") from None
