"""Ranking metrics of exact target positions. A new metric registers its value per position in `METRICS`.

Importing this module does not import torch, so that settings can list the metrics.
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
    """A mean over targets of a value that depends on the target's position.

    Attributes:
        value: (N,) float64 positions, 1 = best -> (N,) float64 values, without a cutoff.
        takes_cutoff: the metric counts only positions up to a cutoff k. It is called `name@k`, and its value
            is 0 beyond k.
    """

    value: Callable[[Tensor], Tensor]
    takes_cutoff: bool = False


METRICS: Registry[Metric] = Registry("metric")


def reciprocal(positions: Tensor) -> Tensor:
    """Return 1 / position. Its mean is the mean reciprocal rank (MRR)."""
    return 1.0 / positions


def hit(positions: Tensor) -> Tensor:
    """Return 1 for every position. With a cutoff, its mean is the hit rate (HR)."""
    return positions.new_ones(positions.shape)


def discounted_gain(positions: Tensor) -> Tensor:
    """Return 1 / log2(position + 1). With a cutoff, its mean is the NDCG of one relevant item."""
    return 1.0 / (positions + 1.0).log2()


METRICS.register("mrr", Metric(value=reciprocal))
METRICS.register("hit", Metric(value=hit, takes_cutoff=True))
METRICS.register("ndcg", Metric(value=discounted_gain, takes_cutoff=True))


def metric_names(cutoffs: Sequence[int]) -> list[str]:
    """Return the names of all metrics in the order of `ranking_metrics`: "mrr", "hit@10", "ndcg@10"."""
    plain = [name for name, metric in METRICS.items() if not metric.takes_cutoff]
    at_cutoffs = [f"{name}@{k}" for k in cutoffs for name in METRICS if METRICS[name].takes_cutoff]
    return plain + at_cutoffs


def ranking_metrics(target_positions: Tensor, cutoffs: Sequence[int] = (5, 10, 20)) -> dict[str, float]:
    """Compute every registered metric and the standard error of its mean.

    Sums are correctly rounded, so that the order of the positions does not matter.

    Args:
        target_positions: (N,), the position of each target among its candidates, 1 = best; half-integer if
            ties count half.
        cutoffs: the k of `hit@k` and `ndcg@k`.

    Returns:
        The metrics of `metric_names`, each followed by its standard error, `_se` appended to its name. The
        standard error of one position is NaN.

    Raises:
        ValueError: there are no positions, one is below 1 or NaN, or a cutoff is below 1.
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
        raise ValueError(f"target_positions: the best position is 1, found {worst}")
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
