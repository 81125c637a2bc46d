"""Costs of a training and its validation metric over time, from a run's metrics.jsonl."""

import math
import statistics
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from longplay.launch.run_folders.metrics_file import Series, read_scalars

COSTS = {
    "train_peak_gib": "peak memory, training (GiB)",
    "eval_peak_gib": "peak memory, evaluation (GiB)",
    "seconds_per_epoch": "training (s per epoch)",
    "events_per_s": "training (events/s)",
    "eval_s": "evaluation (s)",
}
"""Fields of `Costs`, with their headers in tables."""


@dataclass(frozen=True, kw_only=True)
class Curve:
    """The validations of a run, in order.

    Attributes:
        metric: its name, such as "full_unseen/ndcg@10".
        seconds: training time until each validation, without validation and saving.
    """

    metric: str = ""
    seconds: list[float] = field(default_factory=list)
    values: list[float] = field(default_factory=list)


@dataclass(frozen=True, kw_only=True)
class Costs:
    """The costs of a run; None where unknown.

    Attributes:
        train_peak_gib: peak memory of rank 0 in training: of its GPU, or of the process on a CPU.
        eval_peak_gib: highest peak memory of any rank in the evaluation of the test split.
        seconds_per_epoch: time of the median step, times the steps of an epoch.
        eval_s: seconds of the evaluation of the test split.
        events_per_s: events per second of all ranks in the median step.
    """

    train_peak_gib: float | None = None
    eval_peak_gib: float | None = None
    seconds_per_epoch: float | None = None
    eval_s: float | None = None
    events_per_s: float | None = None


@dataclass(frozen=True, kw_only=True)
class Scalars:
    """A run's scalars by tag and step."""

    series: dict[str, Series]
    curve: Curve

    def last_step(self) -> int | None:
        return max((step for series in self.series.values() for step in series), default=None)

    def steps_per_epoch(self) -> float | None:
        epochs = self.series.get("train/epoch")
        if not epochs:
            return None
        step = max(epochs)
        return step / epochs[step] if epochs[step] > 0 else None

    def progress(self, max_epochs: int | None) -> str:
        """Return the step and epoch reached, as text."""
        step, per_epoch = self.last_step(), self.steps_per_epoch()
        if step is None:
            return ""
        if per_epoch is None:
            return f"step {step:,}"
        of = "" if max_epochs is None else f" of at most {max_epochs}"
        return f"step {step:,}, epoch {step / per_epoch:.3g}{of}"

    def costs(self, *, evaluation: dict[str, Any]) -> Costs:
        """Return the costs of the run; `evaluation` is the report of `longplay evaluate`, or empty."""
        step_ms, per_epoch = self._median("perf/step_ms"), self.steps_per_epoch()
        peaks = self.series.get("memory/peak_gib", {})
        return Costs(
            train_peak_gib=max(peaks.values(), default=None),
            eval_peak_gib=evaluation.get("peak_gib"),
            seconds_per_epoch=None if step_ms is None or per_epoch is None else step_ms * per_epoch / 1e3,
            eval_s=evaluation.get("seconds"),
            events_per_s=self._median("perf/events_per_s"),
        )

    def _median(self, tag: str) -> float | None:
        """Return the median over the logged steps; the first, which includes setup, is left out."""
        series = self.series.get(tag, {})
        values = [series[step] for step in sorted(series)]
        return statistics.median(values[1:] or values) if values else None


def finite_scalars(run: Path, metric: str) -> Scalars:
    """Return a run's finite scalars, with the curve of `metric`; the run may be in training."""
    series: dict[str, Series] = {}
    for tag, logged in read_scalars(run).items():
        finite = {step: value for step, value in logged.items() if math.isfinite(value)}
        if finite:
            series[tag] = finite
    return Scalars(series=series, curve=_curve(series, metric))


def _curve(series: dict[str, Series], metric: str) -> Curve:
    validations = series.get(f"eval_{metric}", {})
    step_ms = series.get("perf/step_ms", {})
    if not validations or not step_ms:
        return Curve(metric=metric)
    steps = sorted(validations)
    return Curve(
        metric=metric,
        seconds=[_training_seconds(step_ms, step) for step in steps],
        values=[validations[step] for step in steps],
    )


def _training_seconds(step_ms: Series, until: int) -> float:
    """Return the seconds of all steps up to `until`; a step without a log entry counts as the next logged."""
    seconds, before, pace = 0.0, 0, 0.0
    for step in sorted(step_ms):
        if step > until:
            return seconds + (until - before) * step_ms[step] / 1e3
        pace = step_ms[step] / 1e3
        seconds, before = seconds + (step - before) * pace, step
    return seconds + (until - before) * pace
