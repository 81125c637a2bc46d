"""The interface of training losses: settings, candidates, value and cost.

A new loss is a module that subclasses `Loss` and registers the class in `LOSSES`. A module outside this
package must be imported before the settings are read.
"""

from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar, Literal, NamedTuple

from torch import Tensor

from longplay.common.registry import Registry
from longplay.common.settings import Fraction, UpToMillion, settings_class
from longplay.models.rows.gather import RowEntries

if TYPE_CHECKING:
    from longplay.models.losses.negatives import SharedNegatives

Candidates = Literal["per_target", "shared", "none"]
"""The items whose table rows a loss needs.

per_target: each target and `num_negatives` negatives of its own, uniform over all other items.
shared: each target and `num_negatives` negatives shared by the global batch, drawn by `LossConfig.negatives`.
none: no rows; the loss is computed by `TableCrossEntropy`.
"""
NegativesName = Literal["uniform", "frequency", "in_batch"]
TableCrossEntropy = Callable[[Tensor, Tensor], Tensor]
"""Map hidden (V, D) and positives (V,) to the full cross-entropy, summed over targets. Collective."""


@settings_class
class LossConfig:
    """The training loss and its negatives.

    Attributes:
        name: Training loss: bce, gbce, bpr, sampled_softmax, full_softmax, or a loss of an --import module.
        num_negatives: Number of negatives. Per target for bce, gbce and bpr; per global batch for
            sampled_softmax; unused by full_softmax.
        gbce_t: Calibration t of gbce. 0 = bce, 1 = fully calibrated for the sampling rate.
        negatives: Distribution of the negatives of sampled_softmax. bce, gbce and bpr draw uniformly.
        frequency_alpha: Exponent of negatives=frequency, which draws items in proportion to count ** alpha.
    """

    name: str = "full_softmax"
    num_negatives: UpToMillion = 1
    gbce_t: Fraction = 0.75
    negatives: NegativesName = "uniform"
    frequency_alpha: Fraction = 0.75

    def __post_init__(self) -> None:
        if self.name not in LOSSES:
            raise ValueError(f"name={self.name!r}: {LOSSES.hint(self.name)}")
        if LOSSES[self.name].candidates == "per_target" and self.negatives != "uniform":
            raise ValueError(
                f"negatives={self.negatives!r}: {self.name} draws uniform negatives for each target; "
                "use 'uniform', or name='sampled_softmax'"
            )

    @property
    def draws_by_count(self) -> bool:
        """Whether the negatives depend on the item counts of the training split."""
        return LOSSES[self.name].candidates == "shared" and self.negatives != "uniform"


@dataclass(frozen=True, kw_only=True)
class LossInputs:
    """The V targets of a micro-batch and their candidates.

    Attributes:
        hidden: (V, D), any float dtype, the encoder's output at each target.
        rows: (U, D) float32, the table rows looked up for the micro-batch, one per item.
        positives: (V,) int64, item ids of the targets.
        positive_index: (V,) int64, index of each target in `rows`. Empty if `candidates` is "none".
        negative_index: (V, K) int64, or (M,) int64 for shared negatives, indices into `rows`. Empty if
            `candidates` is "none".
        shared: (M,) int64, item ids of the shared negatives; None unless `candidates` is "shared".
        entries: the entries of `rows` from the first target on, for `gather_rows` and `score_candidates`;
            None where PyTorch sums row gradients.
        cross_entropy: computes the cross-entropy over all items.
    """

    hidden: Tensor
    rows: Tensor
    positives: Tensor
    positive_index: Tensor
    negative_index: Tensor
    shared: Tensor | None
    cross_entropy: TableCrossEntropy
    entries: RowEntries | None = None


@dataclass(frozen=True, kw_only=True)
class LossLoad:
    """Sizes of one micro-batch on one rank, from which a loss estimates its cost.

    Attributes:
        device_type: "cpu" or "cuda".
        num_targets: expected number of targets V.
        width: width D of the rows.
        world_size: number of ranks.
        rows_per_rank: table rows owned by a rank.
        logits_at_once: maximum number of logits that `TableCrossEntropy` holds at a time on a rank.
    """

    device_type: str
    num_targets: float
    width: int
    world_size: int
    rows_per_rank: int
    logits_at_once: int


@dataclass(frozen=True, kw_only=True)
class LossCost:
    """Memory and traffic of a loss for one micro-batch on one rank.

    Attributes:
        saved_bytes: memory saved by the forward for the backward.
        working_bytes: additional memory at the peak of the forward or backward.
        sent_bytes: bytes sent to other ranks, excluding the lookup of candidate rows.
    """

    saved_bytes: int
    working_bytes: int
    sent_bytes: float = 0.0


class Lookups(NamedTuple):
    """Expected number of item ids that a micro-batch looks up for its targets and negatives.

    Attributes:
        by_popularity: ids that follow the item distribution of the events.
        uniform: ids that are uniform over the catalog.
    """

    by_popularity: float
    uniform: float


class Loss(ABC):
    """A training loss, built once per run.

    Args:
        config: settings of the loss.
        num_items: size of the catalog; item ids are 1..num_items.
        shared: distribution of the shared negatives. Required to call a loss whose `candidates` is "shared";
            `cost` and `lookups` do not need it.

    Attributes:
        display_name: name in tables and figures.
        candidates: the items whose rows the loss needs.
        dense_gradient: whether every table row gets a gradient in every step.
    """

    display_name: ClassVar[str]
    candidates: ClassVar[Candidates]
    dense_gradient: ClassVar[bool] = False

    def __init__(
        self, config: LossConfig, *, num_items: int, shared: "SharedNegatives | None" = None
    ) -> None:
        self.config, self.num_items, self.shared = config, num_items, shared

    @abstractmethod
    def __call__(self, inputs: LossInputs) -> Tensor:
        """Return the loss summed over targets, a float32 scalar. Collective if it calls `cross_entropy`."""

    @abstractmethod
    def cost(self, load: LossLoad) -> LossCost:
        """Estimate the memory and traffic of one micro-batch."""

    def lookups(self, num_targets: float) -> Lookups:
        """Estimate the number of item ids that one micro-batch looks up for its targets and negatives."""
        match self.candidates:
            case "none":
                return Lookups(num_targets, 0.0)
            case "per_target":
                return Lookups(num_targets, num_targets * self.config.num_negatives)
            case "shared" if self.config.negatives == "uniform":
                return Lookups(num_targets, float(self.config.num_negatives))
            case "shared":
                return Lookups(num_targets + self.config.num_negatives, 0.0)


LOSSES: Registry[type[Loss]] = Registry("loss", package="longplay.models.losses")
