"""Bayesian personalised ranking with K negatives per target."""

from torch import Tensor
from torch.nn import functional as F

from longplay.models.losses.base import LOSSES
from longplay.models.losses.per_target import PerTargetLoss


class BPR(PerTargetLoss):
    """mean_k(-log sigmoid(s+ - s-_k)), summed over targets.

    Source: Rendle et al., "BPR: Bayesian personalized ranking from implicit feedback", UAI 2009.
    """

    display_name = "BPR"

    def from_scores(self, positive: Tensor, negative: Tensor) -> Tensor:
        return F.softplus(negative - positive.unsqueeze(1)).mean(1).sum()


LOSSES.register("bpr", BPR)
