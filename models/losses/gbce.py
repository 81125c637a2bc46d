"""Generalized binary cross-entropy, calibrated for the sampling rate of negatives."""

from torch import Tensor
from torch.nn import functional as F

from longplay.models.losses.base import LOSSES
from longplay.models.losses.per_target import PerTargetLoss


class GBCE(PerTargetLoss):
    """-beta log sigmoid(s+) - sum_k log(1 - sigmoid(s-_k)), summed over targets, with beta from `gbce_beta`.

    No logit transform is needed, because log(sigmoid(s+) ** beta) = beta log sigmoid(s+).

    Source: Petrov and Macdonald, "gSASRec", RecSys 2023.
    """

    display_name = "gBCE"

    def from_scores(self, positive: Tensor, negative: Tensor) -> Tensor:
        beta = gbce_beta(negative.shape[1], self.num_items, self.config.gbce_t)
        return beta * F.softplus(-positive).sum() + F.softplus(negative).sum()


def gbce_beta(num_negatives: int, num_items: int, t: float) -> float:
    """Return gBCE's exponent alpha (t (1 - 1 / alpha) + 1 / alpha), alpha = num_negatives / (num_items - 1).

    Source: Petrov and Macdonald, "gSASRec", RecSys 2023, equation 12.

    Raises:
        ValueError: `num_items` is less than 2.
    """
    if num_items < 2:
        raise ValueError(f"num_items={num_items}: must be at least 2")
    alpha = min(1.0, num_negatives / (num_items - 1))
    return alpha * (t * (1.0 - 1.0 / alpha) + 1.0 / alpha)


LOSSES.register("gbce", GBCE)
