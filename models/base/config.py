"""The encoder's configuration: one frozen dataclass for all five models."""

from dataclasses import dataclass
from typing import Literal, get_args

ModelName = Literal["gru4rec", "sasrec", "recmamba", "mambarec", "moematrrec"]
MixerName = Literal["mamba", "mamba2"]
GateName = Literal["soft", "top1"]
ScanName = Literal["auto", "chunk", "cpp", "kernel", "ref"]
ActivationName = Literal["gelu", "relu", "silu"]


@dataclass(frozen=True, kw_only=True)
class EncoderConfig:
    """Shape and switches of an encoder. None means "the model's own default", resolved by the properties
    below.

    Attributes:
        model: which of the study's models.
        context_length: slots in a row; sizes the learned positions, where there are any.
        d_model: width of item embeddings and hidden states.
        num_blocks: blocks (layers, for GRU4Rec).
        dropout: probability inside the blocks.
        input_dropout: probability on the item embeddings; None = `dropout`.
        input_scale: factor on the item embeddings; None = sqrt(d_model).
        positional_embedding: learned positions, counted from each segment's start; None = on for the models
            with attention (sasrec, moematrrec), as the state-space and recurrent ones know order by
            themselves.
        layer_norm: normalise, in the blocks and at the end. Off only for ablation.
        residual: skip connections around mixers and feed-forwards. Off only for ablation.
        mixer: the state-space mixer of RecMamba, MambaRec and MoEMaTrRec.
        d_state, d_conv, expand: the mixer's state per channel, convolution taps, and inner width / d_model.
        headdim: channels per head of Mamba-2.
        num_heads: attention heads of SASRec and MoEMaTrRec.
        d_ff: inner width of the feed-forward; None = 4 * d_model.
        activation: of the feed-forward.
        gate: MoEMaTrRec's mixing, a convex sum of both branches or the likelier one scaled by its
            probability.
        scan_backend: how the Mamba-1 recurrence is computed; "auto" takes the fastest that is available.
    """

    model: ModelName
    context_length: int
    d_model: int = 64
    num_blocks: int = 2
    dropout: float = 0.2
    input_dropout: float | None = None
    input_scale: float | None = None
    positional_embedding: bool | None = None
    layer_norm: bool = True
    residual: bool = True
    mixer: MixerName = "mamba"
    d_state: int = 32
    d_conv: int = 4
    expand: int = 2
    headdim: int = 32
    num_heads: int = 2
    d_ff: int | None = None
    activation: ActivationName = "gelu"
    gate: GateName = "soft"
    scan_backend: ScanName = "auto"

    def __post_init__(self) -> None:
        for field, names in _CHOICES.items():
            if getattr(self, field) not in names:
                raise ValueError(f"{field}={getattr(self, field)!r}: must be one of {', '.join(names)}")
        for field in (
            "context_length",
            "d_model",
            "num_blocks",
            "d_state",
            "d_conv",
            "expand",
            "headdim",
            "num_heads",
        ):
            _check_positive(field, getattr(self, field))
        if self.d_ff is not None:
            _check_positive("d_ff", self.d_ff)
        for field in ("dropout", "input_dropout"):
            _check_probability(field, getattr(self, field))
        if self.input_scale is not None and not 0.0 < self.input_scale < float("inf"):
            raise ValueError(f"input_scale={self.input_scale}: must be positive and finite, for example 1.0")
        if self.model in _WITH_ATTENTION:
            _check_divides("num_heads", self.num_heads, "d_model", self.d_model)
        if self.mixer == "mamba2" and self.model in ("recmamba", "mambarec", "moematrrec"):
            _check_divides("headdim", self.headdim, "expand * d_model", self.expand * self.d_model)

    @property
    def has_positions(self) -> bool:
        """Whether learned positions are added to the item embeddings."""
        if self.positional_embedding is None:
            return self.model in _WITH_ATTENTION
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


_WITH_ATTENTION = ("sasrec", "moematrrec")
_CHOICES: dict[str, tuple[str, ...]] = {
    "model": get_args(ModelName),
    "mixer": get_args(MixerName),
    "gate": get_args(GateName),
    "scan_backend": get_args(ScanName),
    "activation": get_args(ActivationName),
}


def _check_positive(field: str, value: int) -> None:
    if isinstance(value, bool) or not isinstance(value, int) or value < 1:
        raise ValueError(f"{field}={value!r}: must be a whole number of at least 1; nearest valid: 1")


def _check_probability(field: str, value: float | None) -> None:
    if value is not None and not 0.0 <= value < 1.0:
        raise ValueError(
            f"{field}={value}: must be at least 0 and below 1; nearest valid: {0.0 if value < 0 else 0.99}"
        )


def _check_divides(field: str, value: int, whole_name: str, whole: int) -> None:
    if whole % value:
        divisors = [d for d in range(1, whole + 1) if whole % d == 0]
        nearest = min(divisors, key=lambda d: abs(d - value))
        raise ValueError(f"{field}={value}: must divide {whole_name} = {whole}; nearest valid: {nearest}")
