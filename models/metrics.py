"""Ranking metrics from exact ranks."""

import math
from collections.abc import Sequence

import torch
from torch import Tensor


def ranking_metrics(ranks: Tensor, cutoffs: Sequence[int] = (5, 10, 20)) -> dict[str, float]:
    """Hit rate and NDCG at cutoffs, and MRR, each with the standard error of its mean.

    Sums are correctly rounded, so the order of the ranks does not matter.

    Args:
        ranks: (N,), the target's rank among the candidates, 1 = best; half-integer where ties are counted
            half.
        cutoffs: ranks up to and including a cutoff count as hits.

    Returns:
        `hit@k`, `ndcg@k` for each k, and `mrr`, and each with `_se` appended; a standard error of one rank is
        NaN.

    Raises:
        ValueError: if there are no ranks, one is below 1 or NaN, or a cutoff is below 1.
    """
    if ranks.dim() != 1 or ranks.numel() == 0:
        raise ValueError(f"ranks of shape {tuple(ranks.shape)}: must be (N,) with N at least 1")
    if any(k < 1 for k in cutoffs):
        raise ValueError(f"cutoffs={tuple(cutoffs)}: must be at least 1")
    ranks = ranks.detach().cpu().double()
    if not bool((ranks >= 1).all()):
        raise ValueError(f"ranks: the best is 1, found {ranks[~(ranks >= 1)][0].item()}")
    gains = 1.0 / torch.log2(ranks + 1.0)
    values = {"mrr": 1.0 / ranks}
    for k in cutoffs:
        values[f"hit@{k}"] = (ranks <= k).double()
        values[f"ndcg@{k}"] = torch.where(ranks <= k, gains, 0.0)
    metrics = {}
    for name, of_rank in values.items():
        metrics[name], metrics[f"{name}_se"] = _mean_and_standard_error(of_rank.tolist())
    return metrics


def _mean_and_standard_error(values: list[float]) -> tuple[float, float]:
    count = len(values)
    mean = math.fsum(values) / count
    if count == 1:
        return mean, math.nan
    variance = math.fsum((value - mean) ** 2 for value in values) / (count - 1)
    return mean, math.sqrt(variance / count)
