"""Compute the exact metrics of a model on one split: every user, every item, over all ranks."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import nullcontext
from dataclasses import dataclass

import torch
from torch import Tensor

from longplay.data_shards.errors import DataError
from longplay.data_shards.storage.dataset import Dataset
from longplay.data_shards.stream.eval_stream import EvalBatch, EvalConfig, EvalStream
from longplay.data_shards.stream.splits import Part
from longplay.distributed.runtime.collectives import all_gather_rows
from longplay.distributed.runtime.heartbeat import Heartbeat, no_heartbeat
from longplay.distributed.runtime.waiting import waiting
from longplay.distributed.table.item_table import ItemTable
from longplay.distributed.table.ranking import TargetPositions, join_queries, target_positions
from longplay.launch.console.stop_request import Interrupts, StopRequested
from longplay.launch.evaluation.queries import Encoder, make_queries
from longplay.launch.inputs.event_inputs import load_inputs
from longplay.launch.settings.bad_shards import share_skipped
from longplay.launch.settings.config import EvaluationConfig, RunConfig
from longplay.models.metrics import ranking_metrics


@dataclass(frozen=True, kw_only=True)
class Evaluation:
    """The metrics of one split.

    Attributes:
        metrics: by set of candidates ("full", "full_unseen", "sampled100") and name ("hit@10").
        seconds: duration of the evaluation.
        num_users_few_unseen: users with fewer unseen items than `evaluation.num_sampled`, not counting the
            target. Their sampled ranking has fewer candidates.
        num_users_none_unseen: users with no unseen item but the target, whose unseen and sampled metrics are
            1 for any model.
    """

    metrics: dict[str, dict[str, float]]
    num_users: int
    seconds: float
    num_users_few_unseen: int = 0
    num_users_none_unseen: int = 0

    @classmethod
    def of(
        cls, positions: Tensor, num_unseen: Tensor, settings: EvaluationConfig, *, seconds: float
    ) -> Evaluation:
        """Compute the metrics of the targets' positions.

        Args:
            positions: (users, 3) float64, among all, unseen and sampled items; 1 = best.
            num_unseen: (users,), unseen items of each user, not counting the target.
        """
        metrics = {
            name: ranking_metrics(positions[:, column], cutoffs=settings.cutoffs)
            for column, name in enumerate(settings.candidate_sets())
        }
        return cls(
            metrics=metrics,
            num_users=positions.shape[0],
            seconds=seconds,
            num_users_few_unseen=int((num_unseen < settings.num_sampled).sum()),
            num_users_none_unseen=int((num_unseen < 1).sum()),
        )

    def flat(self) -> dict[str, float]:
        """Return the metrics as {"full/hit@10": ...}."""
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
    progress: Callable[[str, int, int], None] | None = None,
    heartbeat: Heartbeat = no_heartbeat,
    interrupts: Interrupts = nullcontext,
    max_rounds: int | None = None,
) -> Evaluation:
    """Rank the held-out event of every user of `part`; every rank gets the same result. Collective.

    Args:
        encoder: (embedded (B, L, D), seq_idx (B, L), None, flat slots (Q,), inputs) -> hidden states (Q, D),
            in eval mode. Every rank calls it once per round.
        max_users: evaluate this many users, chosen by the seed; None = all.
        progress: called with ("evaluating", rounds done, total rounds).
        heartbeat: the watchdog's; called at the start of each round.
        interrupts: a stop request's; ends the wait for a batch.
        max_rounds: stop after this many batches per rank, to check that they fit into memory.

    Raises:
        NonFiniteError: the encoder's output is not finite.
        DataError: a shard is bad and not skipped, or every shard with users of `part` is bad.
        StopRequested: some rank is to stop. Raised on every rank.
    """
    world, settings = table.world, config.evaluation
    began = time.perf_counter()
    inputs = load_inputs(config.inputs, dataset)
    rows = EvalConfig(
        context_length=config.context_length,
        rows_per_batch=settings.rows_per_batch,
        split=config.data.split,
        max_users=max_users,
        seed=config.seed,
    )
    stream = EvalStream(
        dataset, rows, part, rank=world.rank, world_size=world.world_size, columns=inputs.columns
    )
    batches, collected, pending = iter(stream), [], []
    num_rounds = min(stream.num_rounds, max_rounds or stream.num_rounds)
    rounds_per_pass = max(1, stream.num_rounds * settings.queries_per_pass // stream.num_users)
    for number in range(1, num_rounds + 1):
        heartbeat(f"evaluating, round {number} of {num_rounds}")
        batch, stopped = _next_batch(batches, interrupts)
        with torch.no_grad():  # In inference_mode ZeRO-3 would keep gathered weights as inference tensors.
            queries = make_queries(encoder, table, batch, config, inputs, stopped=stopped)
            pending.append((_users_and_unseen(batch, dataset.num_items), queries))
            if number % rounds_per_pass == 0 or number == num_rounds:
                positions = target_positions(join_queries([queries for _, queries in pending]), table)
                users = torch.cat([users for users, _ in pending])
                with waiting("the positions"):
                    collected.append(torch.cat([users.double(), _columns(positions).cpu()], 1))
                pending.clear()
        if progress is not None:
            progress("evaluating", number, num_rounds)
    everyone, _ = all_gather_rows(torch.cat(collected).to(world.device), world)
    with waiting("all positions"):
        everyone = everyone.cpu()
    everyone = everyone[everyone[:, 0].argsort()]
    share_skipped(dataset, world)
    assert everyone.shape[0] == stream.num_users or dataset.store.skipped or num_rounds < stream.num_rounds
    if not everyone.shape[0]:
        raise DataError(f"{dataset.path}: all users of {part} are in bad shards; restore those shards")
    return Evaluation.of(everyone[:, 2:], everyone[:, 1], settings, seconds=time.perf_counter() - began)


def _next_batch(batches: Iterator[EvalBatch], interrupts: Interrupts) -> tuple[EvalBatch | None, bool]:
    """Return this rank's next batch, None if it has none, and whether a stop was requested meanwhile."""
    try:
        with interrupts():
            return next(batches, None), False
    except StopRequested:
        return None, True


def _users_and_unseen(batch: EvalBatch | None, num_items: int) -> Tensor:
    """Return (Q, 2) int64: each user and the number of unseen items, not counting the target."""
    if batch is None:
        return torch.empty(0, 2, dtype=torch.int64)
    return torch.stack([batch.users, num_items - 1 - batch.seen_ptr.diff()], 1)


def _columns(positions: TargetPositions) -> Tensor:
    return torch.stack([positions.full, positions.full_unseen, positions.sampled], 1)
