"""The tables of a report as CSV."""

import csv
import io
from collections.abc import Iterable, Sequence
from typing import Any

import polars as pl

from longplay.launch.reports.groups import METRICS, kinds
from longplay.launch.reports.scalars import COSTS
from longplay.launch.reports.tables import REFERENCE, machines, with_multiples

_NAMES = ("dataset", "context_length", "label")
_COUNTS = ("runs", "finished")
_RUN = ("run", "folder", "dataset", "context_length", "model", "recipe", "grid", "variant", "seed", "state")
_RUN += ("error", "progress", *COSTS, "device", "ranks", "eval_device", "eval_ranks")
_RUN += ("checkpoint", "commit", "host", "torch")


def accuracy_csv(groups: pl.DataFrame) -> str:
    """Return a row per group and kind of ranking: means and sample standard deviations over seeds."""
    rows = [
        [*_pick(row, *_NAMES), kind, *_pick(row, *_COUNTS, *_with_sd(f"{kind}/{name}" for name in METRICS))]
        for row in groups.filter(pl.col("variant").is_null()).iter_rows(named=True)
        for kind in kinds(groups)
    ]
    return _csv([*_header(_NAMES), "kind", *_COUNTS, *_with_sd(METRICS)], rows)


def ablation_csv(groups: pl.DataFrame) -> str:
    """Return a row per variant and kind of ranking, with costs."""
    rows = [
        [
            *(*_pick(row, *_NAMES, "grid", "variant"), kind, *_pick(row, *_COUNTS)),
            *_pick(row, *_with_sd(f"{kind}/{name}" for name in METRICS), *_with_sd(COSTS)),
        ]
        for row in groups.filter(pl.col("variant").is_not_null()).iter_rows(named=True)
        for kind in kinds(groups)
    ]
    return _csv([*_header(_NAMES), "grid", "variant", "kind", *_COUNTS, *_with_sd((*METRICS, *COSTS))], rows)


def efficiency_csv(groups: pl.DataFrame) -> str:
    """Return a row per group: means, sample standard deviations, and multiples of the reference model."""
    rows = [
        [*_pick(row, *_NAMES, *_COUNTS), machines(row), *_pick(row, *_with_sd(COSTS)), *multiples.values()]
        for row, multiples in with_multiples(groups)
        if row["variant"] is None
    ]
    header = [*_header(_NAMES), *_COUNTS, "ranks", *_with_sd(COSTS)]
    return _csv([*header, *(f"{name}_of_{REFERENCE}" for name in COSTS)], rows)


def runs_csv(runs: pl.DataFrame) -> str:
    """Return a row per run with everything that is known about it."""
    columns = [*_RUN, *(name for name in runs.columns if "/" in name)]
    return _csv(columns, runs.select(columns).rows())


def _header(names: Sequence[str]) -> list[str]:
    return ["model" if name == "label" else name for name in names]


def _with_sd(names: Iterable[str]) -> list[str]:
    return [column for name in names for column in (name, f"{name}_sd")]


def _pick(row: dict[str, Any], *names: str) -> list[Any]:
    return [row[name] for name in names]


def _csv(header: Sequence[str], rows: Iterable[Sequence[object]]) -> str:
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(header)
    writer.writerows(rows)
    return text.getvalue()
