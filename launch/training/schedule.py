"""The learning rate of a step."""

import math

from longplay.launch.settings.config import TrainConfig


def learning_rate(
    train: TrainConfig, *, step: int, epochs_done: float, reachable_epochs: float | None = None
) -> float:
    """Return the learning rate: a linear warm-up, then a decay that spans `train.max_epochs`.

    Args:
        step: number of the step, from 1.
        epochs_done: epochs trained before the step.
        reachable_epochs: epochs that the decay spans instead, if `train.max_minutes` ends the run there.
    """
    span = reachable_epochs or train.max_epochs
    done = min(max(epochs_done / span, 0.0), 1.0)
    decayed = {"none": 1.0, "linear": 1.0 - done, "cosine": 0.5 * (1.0 + math.cos(math.pi * done))}
    warm = min(1.0, step / train.warmup_steps) if train.warmup_steps else 1.0
    fraction = train.final_lr_fraction
    return train.lr * warm * (fraction + (1.0 - fraction) * decayed[train.decay])
