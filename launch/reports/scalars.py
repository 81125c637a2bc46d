"""What a run's metrics.jsonl tells: what training cost, and how the metric grew with the time spent."""

import math
import statistics
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from longplay.launch.run_folders.metrics_file import Series, read_scalars


@dataclass(frozen=True, kw_only=True)
class Curve:
    """Validations in the order they were made.

    Attributes:
        metric: "full_unseen/ndcg@10".
        seconds: of training until each, validations and saving left out.
    """

    metric: str = ""
    seconds: list[float] = field(default_factory=list)
    values: list[float] = field(default_factory=list)


@dataclass(frozen=True, kw_only=True)
class Costs:
    """What a run took; None where it does not say.

    Attributes:
        train_peak_gib: of rank 0, of its GPU where there is one, else of the whole process.
        eval_peak_gib: of the rank that used most, when the test split was evaluated.
        seconds_per_epoch: the median step's time, times an epoch's steps.
        eval_s: of the test split.
        events_per_s: trained on, of all ranks together, in the median step.
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
        """How far the run is, in words."""
        step, per_epoch = self.last_step(), self.steps_per_epoch()
        if step is None:
            return ""
        if per_epoch is None:
            return f"step {step:,}"
        of = "" if max_epochs is None else f" of at most {max_epochs}"
        return f"step {step:,}, epoch {step / per_epoch:.3g}{of}"

    def costs(self, *, evaluation: dict[str, Any]) -> Costs:
        """Of this run; `evaluation` is what `longplay evaluate` wrote, or nothing."""
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
        """Of all logged steps but the first, which sets up what later ones use."""
        series = self.series.get(tag, {})
        values = [series[step] for step in sorted(series)]
        return statistics.median(values[1:] or values) if values else None


def finite_scalars(run: Path, metric: str) -> Scalars:
    """A run's scalars, those that are not finite left out, with the curve of `metric`; it may be training."""
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
    """Seconds of all steps up to `until`; a step that was not logged is taken to last as the next logged."""
    seconds, before, pace = 0.0, 0, 0.0
    for step in sorted(step_ms):
        if step > until:
            return seconds + (until - before) * step_ms[step] / 1e3
        pace = step_ms[step] / 1e3
        seconds, before = seconds + (step - before) * pace, step
    return seconds + (until - before) * pace
