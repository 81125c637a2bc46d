"""Ranking metrics, computed from the position of each target in its ranking.

New metrics are registered in `METRICS`. Importing this module does not import torch, so that settings can
list the metrics.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from longplay.common.registry import Registry

if TYPE_CHECKING:
    from torch import Tensor


@dataclass(frozen=True, kw_only=True)
class Metric:
    """A metric that is the mean over targets of a function of the target's position.

    Attributes:
        value: maps (N,) float64 positions, 1 = best, to (N,) float64 values, ignoring any cutoff.
        takes_cutoff: whether the metric is computed at cutoffs k, as `name@k`. Values at positions above k
            are then replaced by 0.
    """

    value: Callable[[Tensor], Tensor]
    takes_cutoff: bool = False


METRICS: Registry[Metric] = Registry("metric")


def reciprocal(positions: Tensor) -> Tensor:
    """Return 1 / position, whose mean is the mean reciprocal rank (MRR)."""
    return 1.0 / positions


def hit(positions: Tensor) -> Tensor:
    """Return 1 for every position. With a cutoff, the mean is the hit rate (HR)."""
    return positions.new_ones(positions.shape)


def discounted_gain(positions: Tensor) -> Tensor:
    """Return 1 / log2(position + 1). With a cutoff, the mean is the NDCG with one relevant item."""
    return 1.0 / (positions + 1.0).log2()


METRICS.register("mrr", Metric(value=reciprocal))
METRICS.register("hit", Metric(value=hit, takes_cutoff=True))
METRICS.register("ndcg", Metric(value=discounted_gain, takes_cutoff=True))


def metric_names(cutoffs: Sequence[int]) -> list[str]:
    """Return the names of all metrics in the order of `ranking_metrics`, for example "mrr", "hit@10"."""
    plain = [name for name, metric in METRICS.items() if not metric.takes_cutoff]
    at_cutoffs = [f"{name}@{k}" for k in cutoffs for name in METRICS if METRICS[name].takes_cutoff]
    return plain + at_cutoffs


def ranking_metrics(target_positions: Tensor, cutoffs: Sequence[int] = (5, 10, 20)) -> dict[str, float]:
    """Compute every registered metric and the standard error of its mean.

    Sums are correctly rounded, so results do not depend on the order of the positions.

    Args:
        target_positions: (N,), the position of each target among its candidates, 1 = best. Ties that count
            half give half-integer positions.
        cutoffs: values of k for metrics such as `hit@k`.

    Returns:
        Each metric of `metric_names`, followed by its standard error as `<name>_se`. Standard errors are
        NaN if N = 1.

    Raises:
        ValueError: N is 0, a position is below 1 or NaN, or a cutoff is below 1.
    """
    if target_positions.dim() != 1 or target_positions.numel() == 0:
        raise ValueError(
            f"target_positions of shape {tuple(target_positions.shape)}: must be (N,) with N at least 1"
        )
    if any(k < 1 for k in cutoffs):
        raise ValueError(f"cutoffs={tuple(cutoffs)}: must be at least 1")
    positions = target_positions.detach().cpu().double()
    if not bool((positions >= 1).all()):
        worst = positions[~(positions >= 1)][0].item()
        raise ValueError(f"target_positions: must be at least 1, found {worst}")
    metrics = {}
    for name in metric_names(cutoffs):
        metric, _, cutoff = name.partition("@")
        values = METRICS[metric].value(positions)
        if cutoff:
            values = values.where(positions <= int(cutoff), 0.0)
        metrics[name], metrics[f"{name}_se"] = _mean_and_standard_error(values.tolist())
    return metrics


def _mean_and_standard_error(values: list[float]) -> tuple[float, float]:
    count = len(values)
    mean = math.fsum(values) / count
    if count == 1:
        return mean, math.nan
    variance = math.fsum((value - mean) ** 2 for value in values) / (count - 1)
    return mean, math.sqrt(variance / count)
