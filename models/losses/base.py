"""What a loss states about itself: its settings, its candidates, its value and its cost.

A new loss is one module that subclasses `Loss` and registers the class in `LOSSES`. A module outside this
package works too if it is imported before the settings are read.
"""

from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar, Literal, NamedTuple

from torch import Tensor

from longplay.common.registry import Registry
from longplay.common.settings import Count, Fraction, settings_class

if TYPE_CHECKING:
    from longplay.models.losses.negatives import SharedNegatives

Candidates = Literal["per_target", "shared", "none"]
"""Which negatives a step draws and looks up for a loss.

per_target: `num_negatives` for each target, uniformly from all other items.
shared: `num_negatives` for all targets of the global batch together, by `LossConfig.negatives`.
none: no negatives and no rows of targets.
"""
NegativesName = Literal["uniform", "frequency", "in_batch"]
TableCrossEntropy = Callable[[Tensor, Tensor], Tensor]
"""(hidden (V, D), positives (V,)) -> cross-entropy over all items, summed over targets. Collective."""


@settings_class
class LossConfig:
    """The training loss and its negatives.

    Attributes:
        name: The loss: bce, gbce, bpr, sampled_softmax, full_softmax, or one of a module given by --import.
        num_negatives: Negatives per target for bce, gbce and bpr; negatives shared by the global batch for
            sampled_softmax; not used by full_softmax.
        gbce_t: Calibration of gbce. 0 = plain bce, 1 = fully calibrated for the sampling rate.
        negatives: Distribution of the negatives of sampled_softmax. bce, gbce and bpr draw uniformly.
        frequency_alpha: Exponent of frequency negatives, which are drawn in proportion to count ** alpha.
    """

    name: str = "full_softmax"
    num_negatives: Count = 1
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
        """Whether drawing the negatives needs the items' counts in the training split."""
        return LOSSES[self.name].candidates == "shared" and self.negatives != "uniform"


@dataclass(frozen=True, kw_only=True)
class LossInputs:
    """The V targets of a micro-batch and what they are compared with.

    Attributes:
        hidden: (V, D) float32, the encoder's output at each target.
        rows: (U, D) float32, the table rows that the micro-batch looked up, each item once.
        positives: (V,) int64, the targets' item ids.
        positive_index: (V,) int64, index of each target's row in `rows`. Empty without candidates.
        negative_index: (V, K) or, for shared negatives, (M,) int64, indices into `rows`. Empty without
            candidates.
        shared: (M,) int64, item ids of the shared negatives; None for other candidates.
        cross_entropy: full cross-entropy over the whole table.
    """

    hidden: Tensor
    rows: Tensor
    positives: Tensor
    positive_index: Tensor
    negative_index: Tensor
    shared: Tensor | None
    cross_entropy: TableCrossEntropy


@dataclass(frozen=True, kw_only=True)
class LossLoad:
    """The size of one micro-batch on one rank, from which a loss estimates its cost.

    Attributes:
        num_targets: expected number of targets V.
        width: D.
        rows_per_rank: table rows that a rank owns.
        logits_at_once: logits that `TableCrossEntropy` may hold at once on a rank.
    """

    num_targets: float
    width: int
    world_size: int
    rows_per_rank: int
    logits_at_once: int


@dataclass(frozen=True, kw_only=True)
class LossCost:
    """What one micro-batch of a loss takes on one rank.

    Attributes:
        saved_bytes: memory kept from the forward to the backward.
        working_bytes: additional memory at the peak of the forward or the backward.
        sent_bytes: bytes sent to other ranks, without the rows that the candidates look up.
    """

    saved_bytes: int
    working_bytes: int
    sent_bytes: float = 0.0


class Lookups(NamedTuple):
    """Expected number of item ids that the targets and negatives of a micro-batch look up.

    Attributes:
        by_popularity: ids that follow the items' shares of the events.
        uniform: ids drawn uniformly from the catalogue.
    """

    by_popularity: float
    uniform: float


class Loss(ABC):
    """A training loss, built once per run.

    Args:
        num_items: size of the catalogue; items are 1..num_items.
        shared: distribution of the shared negatives, for `candidates` "shared"; None is enough for `cost`
            and `lookups`.
    """

    display_name: ClassVar[str]
    candidates: ClassVar[Candidates]
    visits_every_row: ClassVar[bool] = False
    """Whether every row of the table has a gradient at every step."""

    def __init__(
        self, config: LossConfig, *, num_items: int, shared: "SharedNegatives | None" = None
    ) -> None:
        self.config, self.num_items, self.shared = config, num_items, shared

    @abstractmethod
    def __call__(self, inputs: LossInputs) -> Tensor:
        """Return the loss summed over the targets, a float32 scalar. Collective."""

    @abstractmethod
    def cost(self, load: LossLoad) -> LossCost:
        """Estimate the memory and traffic of one micro-batch."""

    def lookups(self, num_targets: float) -> Lookups:
        """Estimate how many ids the targets and negatives of one micro-batch look up."""
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
