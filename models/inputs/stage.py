"""Map the features, times and item columns of events to vectors that are added to the item embeddings."""

import functools
import math
from collections.abc import Mapping

import torch
from torch import Tensor, nn

from longplay.models.base.segments import SegmentLayout
from longplay.models.inputs.spec import (
    FOURIER_PERIODS,
    NO_TIME,
    NUM_GAP_BUCKETS,
    TIMES,
    VECTORS,
    InputSpec,
    category_key,
    feature_key,
)

Inputs = Mapping[str, Tensor]
"""`feature_key`, `category_key` or TIMES -> (...) values of the events; VECTORS -> (..., V) item vectors."""
_MAX_DEVIATIONS = 8.0  # limit of a standardized float feature, in both directions


class InputStage(nn.Module):
    """The sum of a vector for each input of an event, to be added to the embedding of its item.

    A missing value adds nothing: its vector is 0 and is not trained.

    Args:
        spec: the inputs.
        d_model: width of the vectors.
        std: standard deviation of the initial vectors' elements.
    """

    float_mean: Tensor
    float_std: Tensor

    def __init__(self, spec: InputSpec, d_model: int, std: float) -> None:
        super().__init__()
        self.spec = spec
        codes = [(feature_key(name), count) for name, count in spec.categorical]
        codes += [(category_key(name), count) for name, count in spec.item_categories]
        self.embeddings = nn.ModuleDict({key: _embedding(count, d_model, std) for key, count in codes})
        self.gap_embedding: nn.Embedding | None = None
        if spec.time_gap == "bucket":
            self.gap_embedding = nn.Embedding(NUM_GAP_BUCKETS, d_model)
            nn.init.normal_(self.gap_embedding.weight, std=std)
        self.hour_embedding = self.weekday_embedding = None
        if spec.ticks_per_s is not None:
            self.hour_embedding = _embedding(24, d_model, std)
            self.weekday_embedding = _embedding(7, d_model, std)
        waves = 2 * len(FOURIER_PERIODS)
        self.gap_projection = _projection(waves, d_model, std) if spec.time_gap == "fourier" else None
        self.float_projection = _projection(len(spec.floats), d_model, std) if spec.floats else None
        self.vector_projection = _projection(spec.vector_width, d_model, std) if spec.vector_width else None
        statistics = torch.tensor([pair[1:] for pair in spec.floats]).reshape(-1, 2)
        self.register_buffer("float_mean", statistics[:, 0], persistent=False)
        self.register_buffer("float_std", statistics[:, 1], persistent=False)

    def forward(self, inputs: Inputs, previous: Tensor | None) -> Tensor:
        """Return the sum of the vectors of each event.

        Args:
            inputs: (...) int32 codes, float32 features and int64 times; VECTORS (..., V) float32.
            previous: (...) int64, the time of the user's previous event, NO_TIME = none; None if the stage
                does not read times.

        Returns:
            (..., D) of the parameters' dtype.
        """
        terms = [embedding(inputs[key]) for key, embedding in self.embeddings.items()]
        if self.float_projection is not None:
            terms.append(self.float_projection(self._standardized(inputs)))
        if previous is not None:
            terms += self._time_terms(inputs[TIMES], previous)
        if self.vector_projection is not None:
            terms.append(self.vector_projection(inputs[VECTORS].to(self.vector_projection.weight.dtype)))
        return functools.reduce(torch.add, terms)

    def _standardized(self, inputs: Inputs) -> Tensor:
        """Return the standardized float features (..., F), within ±8; a missing one is 0."""
        values = torch.stack([inputs[feature_key(name)] for name, _, _ in self.spec.floats], -1)
        std = self.float_std
        scaled = (values - self.float_mean) / torch.where(std > 0, std, 1.0)
        scaled = scaled.clamp(-_MAX_DEVIATIONS, _MAX_DEVIATIONS).nan_to_num(0.0)
        assert self.float_projection is not None
        return scaled.to(self.float_projection.weight.dtype)

    def _time_terms(self, times: Tensor, previous: Tensor) -> list[Tensor]:
        terms = []
        if self.gap_embedding is not None:
            terms.append(self.gap_embedding(gap_buckets(times, previous)))
        if self.gap_projection is not None:
            waves = gap_waves(times, previous).to(self.gap_projection.weight.dtype)
            terms.append(self.gap_projection(waves))
        if self.hour_embedding is not None and self.weekday_embedding is not None:
            assert self.spec.ticks_per_s is not None
            hour, weekday = hour_and_weekday(times, self.spec.ticks_per_s)
            terms += [self.hour_embedding(hour), self.weekday_embedding(weekday)]
        return terms


def missing_inputs(spec: InputSpec, shape: tuple[int, ...], device: torch.device) -> dict[str, Tensor]:
    """Return inputs of `shape` in which every value is missing, for events of which only items are known."""
    codes = [feature_key(name) for name, _ in spec.categorical]
    codes += [category_key(name) for name, _ in spec.item_categories]
    found = {key: torch.zeros(shape, dtype=torch.int32, device=device) for key in codes}
    found |= {feature_key(name): torch.full(shape, math.nan, device=device) for name, _, _ in spec.floats}
    if spec.uses_times:
        found[TIMES] = torch.full(shape, NO_TIME, device=device)
    if spec.vector_width:
        found[VECTORS] = torch.zeros(*shape, spec.vector_width, device=device)
    return found


def previous_times(times: Tensor, layout: SegmentLayout) -> Tensor:
    """Return (B, L) int64, the time of the previous slot; NO_TIME at the first slot of a segment."""
    return times.roll(1, 1).masked_fill(layout.starts, NO_TIME)


def gap_buckets(times: Tensor, previous: Tensor) -> Tensor:
    """Return the bucket (...) int32 of each gap: 0 = unknown, otherwise 1 + the gap's number of bits."""
    gap, known = _gap(times, previous)
    return torch.where(known, torch.frexp(gap.double()).exponent + 1, 0)


def gap_waves(times: Tensor, previous: Tensor) -> Tensor:
    """Return sines and cosines of log2(1 + gap), (..., 2 * periods) float32 of norm 1; 0 if unknown."""
    gap, known = _gap(times, previous)
    angle = torch.log2(1 + gap.double()).float().unsqueeze(-1)
    angle = angle * torch.tensor([2 * math.pi / period for period in FOURIER_PERIODS], device=times.device)
    return torch.cat([angle.sin(), angle.cos()], -1) * known.unsqueeze(-1) / len(FOURIER_PERIODS) ** 0.5


def hour_and_weekday(times: Tensor, ticks_per_s: int) -> tuple[Tensor, Tensor]:
    """Return the hour, 1..24, and the weekday, 1 = Monday, of times in UTC as int32; 0 = unknown."""
    hours = times.div(3600 * ticks_per_s, rounding_mode="floor")
    days = times.div(86400 * ticks_per_s, rounding_mode="floor")
    known = times != NO_TIME
    hour, weekday = hours % 24 + 1, (days + 3) % 7 + 1  # 1970-01-01 was a Thursday
    return torch.where(known, hour, 0).int(), torch.where(known, weekday, 0).int()


def _gap(times: Tensor, previous: Tensor) -> tuple[Tensor, Tensor]:
    """Return the gaps (...) int64, at least 0, and whether they are known."""
    known = (times != NO_TIME) & (previous != NO_TIME)
    gap = torch.where(known, times - previous, 0)
    # Times do not decrease, so a negative difference has overflowed.
    return torch.where(gap < 0, torch.iinfo(torch.int64).max, gap), known


def _embedding(num_values: int, d_model: int, std: float) -> nn.Embedding:
    """Build the vectors of codes 1..num_values; code 0 has the vector 0."""
    embedding = nn.Embedding(num_values + 1, d_model, padding_idx=0)
    nn.init.normal_(embedding.weight, std=std)
    with torch.no_grad():
        embedding.weight[0].zero_()
    return embedding


def _projection(width: int, d_model: int, std: float) -> nn.Linear:
    """Build a projection without bias. Inputs of norm 1 give vectors with elements of about `std`."""
    projection = nn.Linear(width, d_model, bias=False)
    nn.init.normal_(projection.weight, std=std)
    return projection
