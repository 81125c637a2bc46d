"""Exact metrics of a model on one split: every user, every item, all ranks together."""

import dataclasses
import time
from collections.abc import Callable

import torch
from torch import Tensor

from longplay.data_shards.errors import DataError
from longplay.data_shards.storage.dataset import Dataset
from longplay.data_shards.stream.eval_stream import EvalBatch, EvalConfig, EvalStream
from longplay.data_shards.stream.splits import Part
from longplay.distributed.runtime.collectives import all_gather_rows, all_reduce_max
from longplay.distributed.runtime.errors import NonFiniteError
from longplay.distributed.runtime.watchdog import Heartbeat, no_heartbeat
from longplay.distributed.table.item_table import ItemTable
from longplay.distributed.table.ranking import Queries, Ranks, join_queries, rank_targets
from longplay.launch.evaluation.candidates import sample_unseen
from longplay.launch.settings.config import RunConfig
from longplay.launch.settings.data_arguments import share_skipped
from longplay.models.metrics import ranking_metrics

Encoder = Callable[[Tensor, Tensor, None, Tensor], Tensor]
KINDS = ("full", "full_unseen", "sampled")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Evaluation:
    """Metrics by kind ("full", "full_unseen", "sampled100") and name ("hit@10"), and what they cost."""

    metrics: dict[str, dict[str, float]]
    num_users: int
    seconds: float

    def flat(self) -> dict[str, float]:
        """The metrics as {"full/hit@10": ...}."""
        return {
            f"{kind}/{name}": value for kind, values in self.metrics.items() for name, value in values.items()
        }


def evaluate(
    encoder: Encoder,
    table: ItemTable,
    dataset: Dataset,
    config: RunConfig,
    part: Part,
    *,
    max_users: int | None = None,
    progress: Callable[[int, int], None] | None = None,
    heartbeat: Heartbeat = no_heartbeat,
    max_rounds: int | None = None,
) -> Evaluation:
    """Rank the held-out event of every user of `part`. Every rank must call, and gets the same result.

    Args:
        encoder: (x (B, L, D), seq_idx (B, L), None, at (Q,)) -> (Q, D), hidden states at flat slots, in eval
            mode; called equally often on every rank.
        progress: told (rounds done, rounds in all).
        heartbeat: of the watchdog, called at each round.
        max_rounds: stop after so many batches of each rank, to see whether they fit into memory.
    Raises:
        NonFiniteError: the encoder's output is not finite.
        DataError: a bad shard, or no user left where such are skipped.
    """
    world, settings = table.world, config.evaluation
    began = time.perf_counter()
    stream = EvalStream(
        dataset,
        EvalConfig(
            context_length=config.context_length,
            rows_per_batch=settings.rows_per_batch,
            split=config.data.split,
            max_users=max_users,
            seed=config.seed,
        ),
        part,
        rank=world.rank,
        world_size=world.world_size,
    )
    batches, collected, waiting = iter(stream), [], []
    num_rounds = min(stream.num_rounds, max_rounds or stream.num_rounds)
    rounds_per_pass = max(1, stream.num_rounds * settings.queries_per_pass // stream.num_users)
    for number in range(1, num_rounds + 1):
        heartbeat(f"evaluating, round {number} of {num_rounds}")
        batch = next(batches, None)
        with torch.no_grad():  # not inference_mode: ZeRO-3 would keep what it gathers as inference tensors
            queries = make_queries(encoder, table, batch, config)
            waiting.append((torch.empty(0, dtype=torch.int64) if batch is None else batch.users, queries))
            if number % rounds_per_pass == 0 or number == num_rounds:
                ranks = rank_targets(join_queries([queries for _, queries in waiting]), table)
                users = torch.cat([users for users, _ in waiting])
                collected.append(torch.cat([users.double().unsqueeze(1), _columns(ranks).cpu()], 1))
                waiting.clear()
        if progress is not None:
            progress(number, num_rounds)
    everyone, _ = all_gather_rows(torch.cat(collected).to(world.device), world)
    everyone = everyone.cpu()
    everyone = everyone[everyone[:, 0].argsort()]
    share_skipped(dataset, world)
    assert everyone.shape[0] == stream.num_users or dataset.store.skipped or num_rounds < stream.num_rounds
    if not everyone.shape[0]:
        raise DataError(f"{dataset.path}: all users of {part} are in bad shards; restore those")
    names = ("full", "full_unseen", f"sampled{settings.num_sampled}")
    metrics = {
        name: ranking_metrics(everyone[:, column + 1], cutoffs=settings.cutoffs)
        for column, name in enumerate(names)
    }
    return Evaluation(metrics=metrics, num_users=everyone.shape[0], seconds=time.perf_counter() - began)


def make_queries(encoder: Encoder, table: ItemTable, batch: EvalBatch | None, config: RunConfig) -> Queries:
    """Encode a batch's histories and gather what ranking needs; None stands for a rank that has no batch
    left.
    """
    device = table.world.device
    if batch is None:
        item_ids = torch.zeros(1, config.context_length, dtype=torch.int64, device=device)
        seq_idx = torch.zeros(1, config.context_length, dtype=torch.int32, device=device)
        at = torch.empty(0, dtype=torch.int64, device=device)
    else:
        item_ids, seq_idx = batch.item_ids.to(device), batch.seq_idx.to(device)
        at = (batch.query_rows * config.context_length + batch.query_slots).to(device)
    plan, index = table.plan(item_ids.flatten())
    rows = plan.rows_from_owners(table.shard)
    embedded = torch.nn.functional.embedding(index.view(item_ids.shape), rows)
    hidden = encoder(embedded, seq_idx, None, at).float()
    finite_everywhere(hidden, table)
    if batch is None:
        nothing = torch.empty(0, 2, dtype=torch.int64, device=device)
        return Queries(hidden=hidden, targets=at, seen=nothing, sampled=nothing)
    query = torch.repeat_interleave(torch.arange(batch.targets.shape[0]), batch.seen_ptr.diff())
    sampled = sample_unseen(
        batch.users,
        batch.targets,
        batch.seen_ptr,
        batch.seen_items,
        num_items=table.num_items,
        count=config.evaluation.num_sampled,
        seed=config.seed,
    )
    return Queries(
        hidden=hidden,
        targets=batch.targets.to(device),
        seen=torch.stack([query, batch.seen_items], 1).to(device),
        sampled=sampled.to(device),
    )


def finite_everywhere(hidden: Tensor, table: ItemTable) -> None:
    """Stop all ranks if any rank's queries are not finite: they would rank first. Every rank must call."""
    broken = (~torch.isfinite(hidden)).any().float().reshape(1)
    if all_reduce_max(broken, table.world).item():
        raise NonFiniteError("the encoder's output is not finite; the checkpoint cannot be evaluated")


def _columns(ranks: Ranks) -> Tensor:
    return torch.stack([ranks.full, ranks.full_unseen, ranks.sampled], 1)
