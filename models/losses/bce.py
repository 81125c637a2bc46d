"""Binary cross-entropy with K negatives per target."""

from torch import Tensor
from torch.nn import functional as F

from longplay.models.losses.base import LOSSES
from longplay.models.losses.per_target import PerTargetLoss


class BCE(PerTargetLoss):
    """-log sigmoid(s+) - sum_k log(1 - sigmoid(s-_k)), summed over targets.

    Source: Kang and McAuley, "Self-attentive sequential recommendation", ICDM 2018, equation 6, extended
        to K negatives.
    """

    display_name = "BCE"

    def from_scores(self, positive: Tensor, negative: Tensor) -> Tensor:
        return F.softplus(-positive).sum() + F.softplus(negative).sum()


LOSSES.register("bce", BCE)
