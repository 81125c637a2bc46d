"""The baseline that every model must beat: rank all items by how often they occur in the training events."""

import time

import numpy as np
import torch
from torch import Tensor

from longplay.data_shards.storage.dataset import Dataset
from longplay.data_shards.stream.eval_stream import EvalBatch, EvalConfig, EvalStream
from longplay.data_shards.stream.splits import Part, train_item_counts
from longplay.distributed.table.score_counts import half_wins
from longplay.launch.evaluation.candidates import sample_unseen
from longplay.launch.evaluation.evaluation import Evaluation
from longplay.launch.settings.config import RunConfig
from longplay.models.metrics import ranking_metrics


def evaluate_popularity(dataset: Dataset, config: RunConfig, part: Part) -> Evaluation:
    """The popularity ranking's metrics on `part`, with the same candidates and the same rule for ties."""
    began = time.perf_counter()
    stream = EvalStream(
        dataset, EvalConfig(context_length=config.context_length, split=config.data.split), part
    )
    counts = torch.from_numpy(train_item_counts(dataset, config.data.split)).double()
    ordered = counts[1:].sort().values
    ranks = torch.cat([_ranks(batch, counts, ordered, config) for batch in stream])
    names = ("full", "full_unseen", f"sampled{config.evaluation.num_sampled}")
    metrics = {
        name: ranking_metrics(ranks[:, column], cutoffs=config.evaluation.cutoffs)
        for column, name in enumerate(names)
    }
    return Evaluation(metrics=metrics, num_users=ranks.shape[0], seconds=time.perf_counter() - began)


def _ranks(batch: EvalBatch, counts: Tensor, ordered: Tensor, config: RunConfig) -> Tensor:
    """(Q, 3) ranks among all, unseen and sampled items."""
    num_queries, num_items = batch.targets.shape[0], ordered.shape[0]
    score = counts[batch.targets]
    above = num_items - torch.searchsorted(ordered, score, right=True)
    tied = num_items - above - torch.searchsorted(ordered, score) - 1
    full = 1 + above.double() + 0.5 * tied.double()
    query = torch.repeat_interleave(torch.arange(num_queries), batch.seen_ptr.diff())
    seen = _beaten(torch.stack([query, batch.seen_items], 1), counts, score)
    pairs = sample_unseen(
        batch.users,
        batch.targets,
        batch.seen_ptr,
        batch.seen_items,
        num_items=num_items,
        count=config.evaluation.num_sampled,
        seed=config.seed,
    )
    return torch.stack([full, full - seen, 1 + _beaten(pairs, counts, score)], 1)


def _beaten(pairs: Tensor, counts: Tensor, score: Tensor) -> Tensor:
    """(Q,) how many of the (query, item) pairs beat each query's target, ties half."""
    wins = half_wins(counts[pairs[:, 1]], score[pairs[:, 0]])
    return torch.from_numpy(np.bincount(pairs[:, 0].numpy(), weights=wins.numpy(), minlength=score.shape[0]))
