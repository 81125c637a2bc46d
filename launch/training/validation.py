"""Validation during training."""

import sys
from contextlib import suppress

from longplay.data_shards.storage.dataset import Dataset
from longplay.distributed.runtime.heartbeat import Heartbeat
from longplay.distributed.runtime.memory import explain_out_of_memory
from longplay.launch.console.stop_request import Interrupts, StopRequested
from longplay.launch.evaluation.evaluation import Evaluation, evaluate
from longplay.launch.evaluation.few_unseen import metric_warning
from longplay.launch.training.model import Model
from longplay.launch.training.progress import Progress


class Validation:
    """Evaluate the model in training on the validation split."""

    def __init__(self, model: Model, dataset: Dataset, heartbeat: Heartbeat, interrupts: Interrupts) -> None:
        self._model, self._dataset, self._heartbeat = model, dataset, heartbeat
        self._interrupts = interrupts
        self._checked = False

    def run(self, progress: Progress) -> Evaluation:
        """Evaluate the split and count the result in `progress`. Collective.

        The first time, warn on rank 0 if too few unseen items inflate the metric that selects the best.

        Raises:
            StopRequested: some rank is to stop. Raised on every rank.
        """
        result, config = self._evaluate(), self._model.config
        warning = metric_warning(result, config.evaluation, config.train.metric)
        if warning is not None and self._model.world.is_rank0 and not self._checked:
            print(f"longplay: {warning}", file=sys.stderr)
        self._checked = True
        progress.note_validation(result.flat()[config.train.metric])
        return result

    def try_one_batch(self) -> None:
        """Evaluate one batch, to find out before the first epoch whether it fits into memory. Collective.

        Training needs no such trial, because all steps have the shape of the first one.

        Raises:
            OutOfMemoryError: it does not fit.
        """
        # A requested stop ends the loop before its first step.
        with suppress(StopRequested), explain_out_of_memory("a validation batch"):
            self._evaluate(max_rounds=1)

    def _evaluate(self, max_rounds: int | None = None) -> Evaluation:
        model = self._model
        model.engine.train(False)
        return evaluate(
            model.engine,
            model.table,
            self._dataset,
            model.config,
            "validation",
            max_users=model.config.evaluation.max_validation_users,
            heartbeat=self._heartbeat,
            interrupts=self._interrupts,
            max_rounds=max_rounds,
        )
