"""The configuration of a run. The sections of models, tables and streams are declared in their modules."""

from dataclasses import field
from typing import Annotated, Literal

from pydantic import Field

from longplay.common.settings import (
    Count,
    Fraction,
    NonNegativeInt,
    PositiveFloat,
    Seconds,
    settings_class,
)
from longplay.data_shards.stream.config import StreamConfig
from longplay.distributed.checkpoints.writer import Background
from longplay.distributed.engine import EngineConfig
from longplay.distributed.table.config import ItemTableConfig
from longplay.launch.settings.errors import did_you_mean
from longplay.models.base.config import EncoderConfig
from longplay.models.inputs.config import InputConfig
from longplay.models.losses.base import LOSSES, LossConfig
from longplay.models.metrics import metric_names


@settings_class
class TrainConfig:
    """Learning rate, duration, validation, checkpoints and logging.

    Attributes:
        lr: Learning rate after the warm-up.
        warmup_steps: Steps over which the learning rate rises linearly from 0.
        decay: How the learning rate falls after the warm-up, until `max_epochs` have passed.
        final_lr_fraction: Learning rate at the end of the decay, as a fraction of `lr`.
        max_epochs: Passes over the training events. The learning rate schedule spans them.
        max_steps: Stop after this number of steps. The schedule does not change. None = no limit.
        max_minutes: Stop after this many minutes of training, not counting evaluation. If that ends the run
            before `max_epochs`, the learning rate decays over the epochs that it reaches. None = no limit.
        eval_every_steps: Steps between validations. None = validate after each epoch.
        metric: Validation metric that selects the best checkpoint.
        patience: Stop after this number of validations in a row without a better metric. None = never.
        checkpoint_every_steps: Steps between checkpoints. None = save at each validation.
        keep_checkpoints: Number of newest checkpoints to keep, in addition to the best one. With 1, a
            corrupt checkpoint can leave nothing to resume from.
        background_save: Write checkpoints while training continues, from a copy in host memory. auto = if
            half of the free memory can hold the copy.
        log_every_steps: Steps between the scalars in metrics.jsonl and TensorBoard.
        device: Device of the encoder and the item table. auto = cuda if it is available.
        deterministic: Repeat runs bitwise on a GPU, more slowly. Algorithms that cannot are refused. On a CPU
            runs always repeat bitwise.
        timeout_s: Seconds without progress after which a rank counts as hung and the run ends.
    """

    lr: PositiveFloat = 1e-3
    warmup_steps: NonNegativeInt = 100
    decay: Literal["none", "linear", "cosine"] = "cosine"
    final_lr_fraction: Fraction = 0.05
    max_epochs: Count = 20
    max_steps: Count | None = None
    max_minutes: PositiveFloat | None = None
    eval_every_steps: Count | None = None
    metric: str = "full_unseen/ndcg@10"
    patience: Count | None = None
    checkpoint_every_steps: Count | None = None
    keep_checkpoints: Count = 2
    background_save: Background = "auto"
    log_every_steps: Count = 10
    device: Literal["auto", "cpu", "cuda"] = "auto"
    deterministic: bool = False
    timeout_s: Seconds = 600.0


@settings_class
class EvaluationConfig:
    """Metrics and batches of an evaluation.

    Attributes:
        rows_per_batch: Packed rows that each rank encodes at once.
        queries_per_pass: Approximate number of users, over all ranks, ranked in one pass over the item table.
        cutoffs: The K of hit@K and ndcg@K.
        num_sampled: Negatives per user in the sampled ranking. The number is part of its metrics' names.
        max_validation_users: Number of users, chosen by the seed, in a validation during training. None = all
            users.
    """

    rows_per_batch: Count = 64
    queries_per_pass: Count = 2048
    cutoffs: Annotated[tuple[Count, ...], Field(min_length=1)] = (5, 10, 20)
    num_sampled: Annotated[Count, Field(le=100_000)] = 100
    max_validation_users: Count | None = None

    def candidate_sets(self) -> tuple[str, str, str]:
        """Return the names of the sets of items that a target is ranked among."""
        return "full", "full_unseen", f"sampled{self.num_sampled}"

    def metric_names(self) -> list[str]:
        """Return what an evaluation measures, as `train.metric` names it: "full_unseen/ndcg@10"."""
        return [f"{name}/{metric}" for name in self.candidate_sets() for metric in metric_names(self.cutoffs)]


@settings_class
class RunConfig:
    """Everything that determines a run.

    Attributes:
        recipe: Name of the recipe.
        seed: Seed of the initial weights, the order of the data, dropout and negatives.
        context_length: Slots in a row: the number of a user's latest events that the encoder sees.
    """

    recipe: str
    seed: NonNegativeInt
    context_length: Count
    encoder: EncoderConfig
    inputs: InputConfig = field(default_factory=InputConfig)
    loss: LossConfig = field(default_factory=LossConfig)
    table: ItemTableConfig = field(default_factory=ItemTableConfig)
    engine: EngineConfig = field(default_factory=EngineConfig)
    data: StreamConfig
    train: TrainConfig = field(default_factory=TrainConfig)
    evaluation: EvaluationConfig = field(default_factory=EvaluationConfig)

    def __post_init__(self) -> None:
        if self.table.update == "zero_dense" and self.engine.zero_stage != 3:
            raise ValueError(
                f"engine.zero_stage={self.engine.zero_stage}: table.update=zero_dense needs 3, because it "
                "writes into ZeRO-3's gradient partition; set --engine.zero_stage 3 or "
                "--table.update row_sparse"
            )
        if self.table.placement == "host" and LOSSES[self.loss.name].dense_gradient:
            raise ValueError(
                f"table.placement=host: loss.name={self.loss.name} reads every row at each step; "
                "set another loss, for example --loss.name sampled_softmax, or --table.placement device"
            )
        measured = self.evaluation.metric_names()
        if self.train.metric not in measured:
            raise ValueError(
                f"train.metric={self.train.metric!r}: is not measured with evaluation.cutoffs "
                f"{self.evaluation.cutoffs}{did_you_mean(self.train.metric, measured, cutoff=0.0)}"
            )
