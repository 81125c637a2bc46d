"""The costs and the validation metric over time of a training run, from its metrics.jsonl."""

import math
import statistics
from collections.abc import Mapping
from dataclasses import dataclass
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
"""The costs of a run, with their headers in tables.

Memory is that of the GPU, or of the process on a CPU: of rank 0 in training, and of the rank with the highest
peak in the evaluation. Seconds per epoch are the median step time multiplied by the steps of an epoch. Events
per second are counted over all ranks in the median step.
"""


@dataclass(frozen=True, kw_only=True)
class RunSeries:
    """The finite scalars of a run by tag and step."""

    series: dict[str, Series]

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

    def costs(self, *, evaluation: Mapping[str, Any]) -> dict[str, float | None]:
        """Return the run's `COSTS`, None where unknown.

        Args:
            evaluation: the report of `longplay evaluate`; may be empty.
        """
        step_ms, per_epoch = self._median("perf/step_ms"), self.steps_per_epoch()
        return {
            "train_peak_gib": max(self.series.get("memory/peak_gib", {}).values(), default=None),
            "eval_peak_gib": evaluation.get("peak_gib"),
            "seconds_per_epoch": step_ms * per_epoch / 1e3 if step_ms and per_epoch else None,
            "events_per_s": self._median("perf/events_per_s"),
            "eval_s": evaluation.get("seconds"),
        }

    def curve(self, metric: str) -> dict[str, Any]:
        """Return the validations of `metric`, with the training time before each."""
        validations = self.series.get(f"eval_{metric}", {})
        step_ms = self.series.get("perf/step_ms", {})
        steps = sorted(validations) if step_ms else []
        return {
            "curve_metric": metric,
            "curve_seconds": [_training_seconds(step_ms, step) for step in steps],
            "curve_values": [validations[step] for step in steps],
        }

    def _median(self, tag: str) -> float | None:
        """Return the median over the logged steps; the first, which includes setup, is left out."""
        series = self.series.get(tag, {})
        values = [series[step] for step in sorted(series)]
        return statistics.median(values[1:] or values) if values else None


def read_series(run: Path) -> RunSeries:
    """Read the finite scalars of a run; the run may be in training."""
    finite = {
        tag: {step: value for step, value in logged.items() if math.isfinite(value)}
        for tag, logged in read_scalars(run).items()
    }
    return RunSeries(series={tag: series for tag, series in finite.items() if series})


def _training_seconds(step_ms: Series, until: int) -> float:
    """Return the seconds of all steps up to `until`; an unlogged step counts as the next logged one."""
    seconds, before, pace = 0.0, 0, 0.0
    for step in sorted(step_ms):
        if step > until:
            return seconds + (until - before) * step_ms[step] / 1e3
        pace = step_ms[step] / 1e3
        seconds, before = seconds + (step - before) * pace, step
    return seconds + (until - before) * pace
