"""Rank all items by their number of training events: a baseline for every model."""

import time

import numpy as np
import torch
from torch import Tensor

from longplay.data_shards.storage.dataset import Dataset
from longplay.data_shards.stream.eval_stream import EvalBatch, EvalConfig, EvalStream
from longplay.data_shards.stream.splits import Part, train_item_counts
from longplay.distributed.runtime.heartbeat import Heartbeat, no_heartbeat
from longplay.distributed.table.score_counts import half_wins
from longplay.launch.evaluation.evaluation import Evaluation
from longplay.launch.evaluation.queries import sampled_pairs, seen_pairs
from longplay.launch.settings.config import RunConfig


def evaluate_popularity(
    dataset: Dataset, config: RunConfig, part: Part, heartbeat: Heartbeat = no_heartbeat
) -> Evaluation:
    """Compute the metrics of a ranking by popularity, with the same candidates and ties rule as for a model.

    Every rank evaluates all users; no communication.

    Args:
        dataset: the dataset, opened on every rank with the same skipped shards.
        config: the run whose split and evaluation settings apply.
        part: "validation" or "test".
        heartbeat: the watchdog's; called at the start of each batch.
    """
    began = time.perf_counter()
    stream = EvalStream(
        dataset, EvalConfig(context_length=config.context_length, split=config.data.split), part
    )
    counts = torch.from_numpy(train_item_counts(dataset, config.data.split)).double()
    ordered = counts[1:].sort().values
    positions, num_unseen = [], []
    for batch in stream:
        heartbeat(f"ranking by popularity, batch {len(positions) + 1} of {stream.num_batches}")
        positions.append(_target_positions(batch, counts, ordered, config))
        num_unseen.append(dataset.num_items - 1 - batch.seen_ptr.diff())
    return Evaluation.of(
        torch.cat(positions),
        torch.cat(num_unseen),
        config.evaluation,
        seconds=time.perf_counter() - began,
    )


def _target_positions(batch: EvalBatch, counts: Tensor, ordered: Tensor, config: RunConfig) -> Tensor:
    """Return the targets' positions (Q, 3) float64 among all, unseen and sampled items.

    Args:
        counts: (num_items + 1,) float64, training events by item.
        ordered: (num_items,) the same, sorted.
    """
    num_items = ordered.shape[0]
    score = counts[batch.targets]
    above = num_items - torch.searchsorted(ordered, score, right=True)
    tied = num_items - above - torch.searchsorted(ordered, score) - 1
    full = 1 + above.double() + 0.5 * tied.double()
    seen = _num_above(seen_pairs(batch), counts, score)
    sampled = _num_above(sampled_pairs(batch, config, num_items=num_items), counts, score)
    return torch.stack([full, full - seen, 1 + sampled], 1)


def _num_above(pairs: Tensor, counts: Tensor, score: Tensor) -> Tensor:
    """Return (Q,): how many of each query's (query, item) pairs have a higher count; a tie counts half."""
    wins = half_wins(counts[pairs[:, 1]], score[pairs[:, 0]])
    return torch.from_numpy(np.bincount(pairs[:, 0].numpy(), weights=wins.numpy(), minlength=score.shape[0]))
