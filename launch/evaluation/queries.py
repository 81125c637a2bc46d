"""Turn a batch of held-out events into queries: the encoded histories and the pairs that ranking needs."""

from collections.abc import Callable

import torch
from torch import Tensor

from longplay.data_shards.stream.eval_stream import EvalBatch
from longplay.distributed.runtime.collectives import all_reduce_max
from longplay.distributed.runtime.errors import NonFiniteError
from longplay.distributed.runtime.waiting import waiting
from longplay.distributed.table.item_table import ItemTable
from longplay.distributed.table.ranking import Queries
from longplay.launch.console.stop_request import StopRequested
from longplay.launch.evaluation.sampled_negatives import sample_unseen
from longplay.launch.inputs.event_inputs import EventInputs
from longplay.launch.settings.config import RunConfig
from longplay.models.inputs.stage import Inputs

Encoder = Callable[[Tensor, Tensor, None, Tensor, Inputs | None], Tensor]


def make_queries(
    encoder: Encoder,
    table: ItemTable,
    batch: EvalBatch | None,
    config: RunConfig,
    event_inputs: EventInputs,
    *,
    stopped: bool = False,
) -> Queries:
    """Encode the histories of a batch and gather what ranking needs. Collective.

    Args:
        batch: None on a rank that has no batch left but still takes part in the collectives.
        stopped: whether this rank is to stop.

    Raises:
        NonFiniteError: the encoder's output is not finite on some rank.
        StopRequested: some rank is to stop. Raised on every rank.
    """
    device = table.world.device
    if batch is None:
        item_ids = torch.zeros(1, config.context_length, dtype=torch.int64, device=device)
        seq_idx = torch.zeros(1, config.context_length, dtype=torch.int32, device=device)
        at = torch.empty(0, dtype=torch.int64, device=device)
        inputs = event_inputs.of_items(item_ids, device)
    else:
        item_ids, seq_idx = batch.item_ids.to(device), batch.seq_idx.to(device)
        at = (batch.query_rows * config.context_length + batch.query_slots).to(device)
        inputs = event_inputs.of_batch(batch, device)
    hidden = encoder(embed(item_ids, table), seq_idx, None, at, inputs).float()
    check_finite(hidden, table, stopped)
    if batch is None:
        nothing = torch.empty(0, 2, dtype=torch.int64, device=device)
        return Queries(hidden=hidden, targets=at, seen=nothing, sampled=nothing)
    return Queries(
        hidden=hidden,
        targets=batch.targets.to(device),
        seen=seen_pairs(batch).to(device),
        sampled=sampled_pairs(batch, config, num_items=table.num_items).to(device),
    )


def embed(item_ids: Tensor, table: ItemTable) -> Tensor:
    """Return the table rows (B, L, D) fp32 of item ids (B, L) int64; padding has zeros. Collective."""
    exchange, index = table.make_exchange(item_ids.flatten())
    return torch.nn.functional.embedding(index.view(item_ids.shape), exchange.fetch_rows(table.shard))


def seen_pairs(batch: EvalBatch) -> Tensor:
    """Return the (query, item) int64 pairs (P, 2) of the histories, each pair once, without the targets."""
    query = torch.repeat_interleave(torch.arange(batch.targets.shape[0]), batch.seen_ptr.diff())
    return torch.stack([query, batch.seen_items], 1)


def sampled_pairs(batch: EvalBatch, config: RunConfig, *, num_items: int) -> Tensor:
    """Return the (query, item) int64 pairs (S, 2) of the sampled negatives."""
    return sample_unseen(
        batch.users,
        batch.targets,
        batch.seen_ptr,
        batch.seen_items,
        num_items=num_items,
        count=config.evaluation.num_sampled,
        seed=config.seed,
    )


def check_finite(hidden: Tensor, table: ItemTable, stopped: bool = False) -> None:
    """Raise on all ranks if any rank's output is not finite: its targets would get position 1. Collective.

    Raises:
        NonFiniteError: the output of some rank is not finite.
        StopRequested: some rank passed `stopped`.
    """
    broken = 2 * (~torch.isfinite(hidden)).any().float().reshape(1)
    with waiting("the check of the hidden states"):
        found = all_reduce_max(broken.clamp(min=float(stopped)), table.world).item()
    if found == 1:
        raise StopRequested
    if found:
        raise NonFiniteError("the encoder's output is not finite; the checkpoint cannot be evaluated")
