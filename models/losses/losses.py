"""Training losses. Each returns the sum over its targets as a float32 scalar; the caller divides by their
global number.

`rows` (U, D) are the table rows that a step touches, each item once; indices point into it. Scores are dot
products, taken in float32 whatever the dtype of `hidden`. Where there are many candidates, targets are taken
in chunks and recomputed in backward.
"""

from collections.abc import Callable, Sequence
from typing import Literal

import torch
from torch import Tensor
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint

from longplay.common.settings import Count, Fraction, settings_class

LossName = Literal["bce", "gbce", "bpr", "sampled_softmax", "full_softmax"]
NegativesName = Literal["uniform", "frequency", "in_batch"]

_CHUNK_ELEMENTS = 1 << 22  # float32 elements of the largest temporary of a chunk: 16 MiB


@settings_class
class LossConfig:
    """The training loss and its negatives.

    Attributes:
        name: The loss.
        num_negatives: Negatives per target for bce, gbce and bpr; negatives shared by the global batch for
            sampled_softmax; not used by full_softmax.
        gbce_t: Calibration of gbce. 0 = plain bce, 1 = fully calibrated for the sampling rate.
        negatives: Distribution of the negatives of sampled_softmax. bce, gbce and bpr draw uniformly.
        frequency_alpha: Exponent of frequency negatives, which are drawn in proportion to count ** alpha.
    """

    name: LossName = "full_softmax"
    num_negatives: Count = 1
    gbce_t: Fraction = 0.75
    negatives: NegativesName = "uniform"
    frequency_alpha: Fraction = 0.75

    def __post_init__(self) -> None:
        if self.name in ("bce", "gbce", "bpr") and self.negatives != "uniform":
            raise ValueError(
                f"negatives={self.negatives!r}: {self.name} draws uniform negatives for each target; "
                "use 'uniform', or name='sampled_softmax'"
            )


def bce_loss(
    hidden: Tensor, rows: Tensor, positive_index: Tensor, negative_index: Tensor, positive_weight: float = 1.0
) -> Tensor:
    """Binary cross-entropy: positive_weight * -log sigmoid(s+) - sum_k log(1 - sigmoid(s-_k)), summed over
    targets.

    Args:
        hidden: (V, D), float32 or bfloat16.
        rows: (U, D), float32.
        positive_index: (V,) int64 into `rows`.
        negative_index: (V, K) int64 into `rows`.
        positive_weight: gBCE's beta; 1 = plain BCE.

    Source: Kang and McAuley, "Self-attentive sequential recommendation", ICDM 2018, equation 6, with K
        negatives.
    """

    def of_scores(positive: Tensor, negative: Tensor) -> Tensor:
        return positive_weight * F.softplus(-positive).sum() + F.softplus(negative).sum()

    return _over_target_chunks(of_scores, hidden, rows, positive_index, negative_index)


def gbce_loss(
    hidden: Tensor, rows: Tensor, positive_index: Tensor, negative_index: Tensor, *, num_items: int, t: float
) -> Tensor:
    """Generalised BCE: -beta log sigmoid(s+) - sum_k log(1 - sigmoid(s-_k)); arguments as `bce_loss`.

    Taking beta out of the logarithm of sigmoid(s+) ** beta is exact and needs no transformed logit.
    """
    beta = gbce_beta(negative_index.shape[1], num_items, t)
    return bce_loss(hidden, rows, positive_index, negative_index, positive_weight=beta)


def gbce_beta(num_negatives: int, num_items: int, t: float) -> float:
    """gBCE's exponent: alpha (t (1 - 1 / alpha) + 1 / alpha), with alpha = num_negatives / (num_items - 1).

    Source: Petrov and Macdonald, "gSASRec", RecSys 2023, equation 12.

    Raises:
        ValueError: if there are fewer than two items.
    """
    if num_items < 2:
        raise ValueError(f"num_items={num_items}: must be at least 2")
    alpha = min(1.0, num_negatives / (num_items - 1))
    return alpha * (t * (1.0 - 1.0 / alpha) + 1.0 / alpha)


def bpr_loss(hidden: Tensor, rows: Tensor, positive_index: Tensor, negative_index: Tensor) -> Tensor:
    """Bayesian personalised ranking: the mean over k of -log sigmoid(s+ - s-_k), summed over targets; as
    `bce_loss`.

    Source: Rendle et al., "BPR: Bayesian personalized ranking from implicit feedback", UAI 2009.
    """

    def of_scores(positive: Tensor, negative: Tensor) -> Tensor:
        return F.softplus(negative - positive.unsqueeze(1)).mean(1).sum()

    return _over_target_chunks(of_scores, hidden, rows, positive_index, negative_index)


def sampled_softmax_loss(
    hidden: Tensor,
    rows: Tensor,
    positive_index: Tensor,
    shared_index: Tensor,
    log_q: Tensor | None = None,
    positive_log_q: Tensor | None = None,
) -> Tensor:
    """Cross-entropy of each target against itself and negatives shared by all targets, corrected by log q.

    A shared negative that is the target's own item is masked. With log_q None the draw is taken as uniform.

    Args:
        hidden: (V, D), float32 or bfloat16.
        rows: (U, D), float32, each item once.
        positive_index: (V,) int64 into `rows`.
        shared_index: (M,) int64 into `rows`; an item may occur several times.
        log_q: (M,) float, the log of each negative's draw probability.
        positive_log_q: (V,) float, the same of each target's item.

    Raises:
        ValueError: if only one of log_q and positive_log_q is given.

    Source: Bengio and Senecal 2008; Yi et al., "Sampling-bias-corrected neural modeling", RecSys 2019.
    """
    if (log_q is None) != (positive_log_q is None):
        raise ValueError("log_q and positive_log_q: give both or neither, or the correction is one-sided")

    def of_chunk(
        hidden: Tensor, positive_rows: Tensor, index: Tensor, positive_log_q: Tensor, negative_rows: Tensor
    ) -> Tensor:
        hidden = hidden.float()
        positive = (hidden * positive_rows.float()).sum(1, keepdim=True) - positive_log_q.unsqueeze(1)
        negative = hidden @ negative_rows.float().t()
        if log_q is not None:
            negative = negative - log_q
        negative = negative.masked_fill(index.unsqueeze(1) == shared_index, -torch.inf)
        return (torch.cat([positive, negative], dim=1).logsumexp(1) - positive.squeeze(1)).sum()

    if positive_log_q is None:
        positive_log_q = hidden.new_zeros(len(hidden), dtype=torch.float32)
    per_target = hidden, F.embedding(positive_index, rows), positive_index, positive_log_q.float()
    return _sum_of_chunks(of_chunk, per_target, F.embedding(shared_index, rows), len(shared_index))


def full_cross_entropy_ref(hidden: Tensor, table: Tensor, target_index: Tensor) -> Tensor:
    """Cross-entropy over every row of an unsharded table, summed over targets; chunked over targets.

    Args:
        hidden: (V, D), float32 or bfloat16.
        table: (I, D), float32.
        target_index: (V,) int64 into `table`.
    """

    def of_chunk(hidden: Tensor, target_index: Tensor, table: Tensor) -> Tensor:
        return F.cross_entropy(hidden.float() @ table.float().t(), target_index, reduction="sum")

    return _sum_of_chunks(of_chunk, (hidden, target_index), table, len(table))


def _over_target_chunks(
    of_scores: Callable[[Tensor, Tensor], Tensor],
    hidden: Tensor,
    rows: Tensor,
    positive_index: Tensor,
    negative_index: Tensor,
) -> Tensor:
    """Sums `of_scores(s+ (v,), s- (v, K))` over chunks of v targets."""

    def of_chunk(hidden: Tensor, positive_index: Tensor, negative_index: Tensor, rows: Tensor) -> Tensor:
        hidden = hidden.float()
        positive = (hidden * F.embedding(positive_index, rows).float()).sum(1)
        negative = (F.embedding(negative_index, rows).float() @ hidden.unsqueeze(2)).squeeze(2)
        return of_scores(positive, negative)

    per_target = hidden, positive_index, negative_index
    return _sum_of_chunks(of_chunk, per_target, rows, negative_index.shape[1] * hidden.shape[1])


def _sum_of_chunks(
    function: Callable[..., Tensor], per_target: Sequence[Tensor], shared: Tensor, elements_per_target: int
) -> Tensor:
    """The float32 sum of `function(*per_target, shared)` over chunks of about _CHUNK_ELEMENTS elements.

    Where there are several chunks, their intermediates are recomputed in backward instead of kept.
    """
    chunk_size = max(1, _CHUNK_ELEMENTS // max(1, elements_per_target))
    if len(per_target[0]) <= chunk_size:
        return function(*per_target, shared)
    total = shared.new_zeros((), dtype=torch.float32)
    for chunk in zip(*(tensor.split(chunk_size) for tensor in per_target), strict=True):
        # nothing random runs inside, so there is no generator state to keep
        part = checkpoint(function, *chunk, shared, use_reentrant=False, preserve_rng_state=False)
        assert isinstance(part, Tensor)
        total = total + part
    return total
