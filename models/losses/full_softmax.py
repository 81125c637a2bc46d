"""Softmax cross-entropy over the whole catalog."""

from torch import Tensor

from longplay.models.losses.base import LOSSES, Loss, LossCost, LossInputs, LossLoad


class FullSoftmax(Loss):
    """Cross-entropy over all items, summed over targets."""

    display_name = "full softmax"
    candidates = "none"
    dense_gradient = True

    def __call__(self, inputs: LossInputs) -> Tensor:
        return inputs.cross_entropy(inputs.hidden, inputs.positives)

    def cost(self, load: LossLoad) -> LossCost:
        hidden, world_size = load.num_targets * load.width, load.world_size
        table_shard_bytes = 4 * load.rows_per_rank * load.width
        gathered = hidden * world_size * (2 if world_size > 1 else 1)
        logits = max(load.logits_at_once, load.rows_per_rank)
        # Hidden states of all ranks are gathered, and their gradients and the softmax sums are reduced.
        remote_share = (world_size - 1) / world_size
        return LossCost(
            saved_bytes=int(4 * (hidden + gathered) + table_shard_bytes),
            working_bytes=int(max(4 * logits, table_shard_bytes)),
            sent_bytes=4 * (load.num_targets * world_size) * (3 * load.width + 6) * remote_share,
        )


LOSSES.register("full_softmax", FullSoftmax)
