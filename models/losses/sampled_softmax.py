"""Softmax cross-entropy over each target and negatives shared by the global batch."""

import torch
from torch import Tensor

from longplay.models.losses.base import LOSSES, Loss, LossCost, LossInputs, LossLoad
from longplay.models.losses.chunks import cost_in_chunks, sum_of_chunks
from longplay.models.rows.gather import gather_rows


class SampledSoftmax(Loss):
    """Cross-entropy over the target and the shared negatives, with logQ correction, summed over targets.

    Negatives equal to the target are masked.

    Source: Bengio and Senecal 2008; Yi et al., "Sampling-bias-corrected neural modeling", RecSys 2019.
    """

    display_name = "sampled softmax"
    candidates = "shared"

    def __call__(self, inputs: LossInputs) -> Tensor:
        assert self.shared is not None
        assert inputs.shared is not None
        log_q = self.shared.log_q(inputs.shared)
        positive_log_q = self.shared.log_q(inputs.positives)
        shared_index = inputs.negative_index

        def chunk_loss(
            hidden: Tensor, positive_rows: Tensor, index: Tensor, positive_log_q: Tensor, rows: Tensor
        ) -> Tensor:
            hidden = hidden.float()
            positive = (hidden * positive_rows.float()).sum(1, keepdim=True) - positive_log_q.unsqueeze(1)
            negative = hidden @ rows.float().t() - log_q
            negative = negative.masked_fill(index.unsqueeze(1) == shared_index, -torch.inf)
            return (torch.cat([positive, negative], dim=1).logsumexp(1) - positive.squeeze(1)).sum()

        entries = inputs.entries
        positive_rows = gather_rows(inputs.rows, inputs.positive_index, entries)
        shared_rows = gather_rows(
            inputs.rows, shared_index, entries and entries.skip(len(inputs.positive_index))
        )
        per_target = inputs.hidden, positive_rows, inputs.positive_index, positive_log_q
        return sum_of_chunks(chunk_loss, per_target, shared_rows, len(shared_index))

    def cost(self, load: LossLoad) -> LossCost:
        hidden, scores = load.num_targets * load.width, load.num_targets * self.config.num_negatives
        return cost_in_chunks(load, self.config.num_negatives) or LossCost(
            saved_bytes=int(4 * (2 * hidden + 1.25 * scores)), working_bytes=int(4 * 3 * scores)
        )


LOSSES.register("sampled_softmax", SampledSoftmax)
