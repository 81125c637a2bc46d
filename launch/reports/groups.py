"""Means and sample standard deviations over runs that differ only in their seed."""

import statistics

import polars as pl

from longplay.launch.reports.names import display_name
from longplay.launch.reports.scalars import COSTS

METRICS = ("hit@10", "ndcg@10", "hit@20", "ndcg@20")
_KINDS = ("full_unseen", "full", "sampled100")
_SAME_SETTINGS = ("dataset", "context_length", "recipe", "grid", "variant", "settings")
_SAME_NAME = ("dataset", "context_length", "label", "grid", "variant")


def group_frame(runs: pl.DataFrame) -> pl.DataFrame:
    """Return a row per group: runs that differ only in their seed.

    Each cost and metric has a column with the mean and a column NAME_sd with the sample standard deviation,
    null for a single value. `label` is unique among the groups of a dataset, length and variant. `member`
    holds row numbers of `runs`. A second run with the same seed is not another sample: it starts a new group.
    """
    metrics = [name for name in runs.columns if "/" in name]
    values = [*COSTS, *metrics]
    lists = ("device", "ranks", "eval_device", "eval_ranks")
    groups = (
        runs.with_row_index("member")
        .with_columns(
            again=pl.int_range(pl.len()).over(*_SAME_SETTINGS, "seed"),
            label=pl.col("recipe").map_elements(display_name, return_dtype=pl.String),
        )
        .group_by(*_SAME_SETTINGS, "label", "again", maintain_order=True)
        .agg(
            pl.col("model", "run", "source").first(),
            pl.col("state", "member"),
            pl.col(*lists).drop_nulls().unique().sort(),
            pl.len().alias("runs"),
            pl.any_horizontal(pl.lit(False), *(pl.col(name).is_not_null() for name in metrics))
            .any()
            .alias("evaluated"),
            pl.col("state").eq("finished").sum().alias("finished"),
            pl.col(*values).drop_nulls(),
        )
    )
    # Not Polars' own mean and std: `statistics` rounds exactly, so that the same runs give the same bytes.
    spreads = [pl.col(name).map_elements(_sd, return_dtype=pl.Float64).alias(f"{name}_sd") for name in values]
    means = [pl.col(name).map_elements(_mean, return_dtype=pl.Float64) for name in values]
    groups = groups.with_columns(*spreads, *means)
    missing = [f"{kind}/{name}{end}" for kind in _KINDS for name in METRICS for end in ("", "_sd")]
    groups = groups.with_columns(
        pl.lit(None, pl.Float64).alias(name) for name in missing if name not in groups.columns
    )
    return _sorted(_with_unique_labels(groups))


def _mean(values: pl.Series) -> float | None:
    return statistics.fmean(values) if len(values) else None


def _sd(values: pl.Series) -> float | None:
    return statistics.stdev(values) if len(values) > 1 else None


def _with_unique_labels(groups: pl.DataFrame) -> pl.DataFrame:
    """Append the source, or else the first run's name, in parentheses to labels that several groups share."""
    alike = pl.len().over(*_SAME_NAME)
    by_source = pl.col("source").n_unique().over(*_SAME_NAME) == alike
    name = pl.when(by_source).then("source").otherwise("run")
    return groups.with_columns(
        label=pl.when(alike > 1).then(pl.format("{} ({})", "label", name)).otherwise("label")
    )


def _sorted(groups: pl.DataFrame) -> pl.DataFrame:
    """Sort by dataset, length, grid, model in the order of the runs, label and variant."""
    models = groups["model"].unique(maintain_order=True)
    return groups.sort(
        "dataset",
        "context_length",
        "grid",
        pl.col("model").cast(pl.Enum(models)).to_physical(),
        "label",
        pl.col("variant").cast(pl.Float64, strict=False),
        "variant",
        nulls_last=True,
        maintain_order=True,
    )


def kinds(groups: pl.DataFrame) -> list[str]:
    """Return the kinds of ranking that the runs were evaluated by: full_unseen, full, then sampled ones."""
    found = {name.partition("/")[0] for name in groups.columns if "/" in name and groups[name].count()}
    first = [kind for kind in ("full_unseen", "full") if kind in found]
    return first + sorted(found - set(first)) or list(_KINDS)


def unique(groups: pl.DataFrame, column: str) -> list[str]:
    """Return the values of a column in order of appearance."""
    return groups[column].unique(maintain_order=True).to_list()
