"""The learning rate of a step."""

import math
from typing import Literal


def learning_rate(
    peak: float,
    *,
    step: int,
    warmup_steps: int,
    done: float,
    decay: Literal["none", "linear", "cosine"],
    final_fraction: float,
) -> float:
    """Linear warm-up to `peak`, then decay to `final_fraction` of it.

    Args:
        step: 1 for the first step.
        done: share of the scheduled epochs that lies behind, 0 to 1.
    """
    done = min(max(done, 0.0), 1.0)
    shape = {"none": 1.0, "linear": 1.0 - done, "cosine": 0.5 * (1.0 + math.cos(math.pi * done))}[decay]
    warm = min(1.0, step / warmup_steps) if warmup_steps else 1.0
    return peak * warm * (final_fraction + (1.0 - final_fraction) * shape)
