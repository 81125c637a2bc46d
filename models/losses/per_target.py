"""Base class of losses with separate uniform negatives for each target."""

from abc import abstractmethod

from torch import Tensor
from torch.nn import functional as F

from longplay.models.losses.base import Loss, LossCost, LossInputs, LossLoad
from longplay.models.losses.chunks import cost_in_chunks, sum_of_chunks
from longplay.models.rows.gather import score_candidates


class PerTargetLoss(Loss):
    """A loss that is a function of each target's score and the scores of its K negatives."""

    candidates = "per_target"

    @abstractmethod
    def from_scores(self, positive: Tensor, negative: Tensor) -> Tensor:
        """Return the loss summed over targets, a float32 scalar.

        Args:
            positive: (V,) float32, scores of the targets.
            negative: (V, K) float32, scores of each target's negatives.
        """

    def __call__(self, inputs: LossInputs) -> Tensor:
        if inputs.entries is not None:
            indices = inputs.positive_index, inputs.negative_index
            scores = score_candidates(inputs.hidden.float(), inputs.rows, *indices, inputs.entries)
            return self.from_scores(*scores)

        def chunk_loss(
            hidden: Tensor, positive_index: Tensor, negative_index: Tensor, rows: Tensor
        ) -> Tensor:
            hidden = hidden.float()
            positive = (hidden * F.embedding(positive_index, rows).float()).sum(1)
            negative = (F.embedding(negative_index, rows).float() @ hidden.unsqueeze(2)).squeeze(2)
            return self.from_scores(positive, negative)

        per_target = inputs.hidden, inputs.positive_index, inputs.negative_index
        elements_per_target = inputs.negative_index.shape[1] * inputs.hidden.shape[1]
        return sum_of_chunks(chunk_loss, per_target, inputs.rows, elements_per_target)

    def cost(self, load: LossLoad) -> LossCost:
        if load.device_type == "cuda":  # scores, their gradients and the losses; no gathered rows
            scores = 4 * load.num_targets * (1 + self.config.num_negatives)
            return LossCost(saved_bytes=int(3 * scores), working_bytes=int(2 * scores))
        elements_per_target = self.config.num_negatives * load.width
        hidden, negatives = load.num_targets * load.width, load.num_targets * elements_per_target
        return cost_in_chunks(load, elements_per_target) or LossCost(
            saved_bytes=int(4 * (2 * hidden + negatives)), working_bytes=int(4 * (hidden + negatives))
        )
