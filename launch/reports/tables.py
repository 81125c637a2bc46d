"""The tables of a report: cells that the templates format."""

from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass

import polars as pl

from longplay.launch.reports.data import Row
from longplay.launch.reports.groups import METRICS, kinds, unique
from longplay.launch.reports.names import display_name, kind_name, metric_name
from longplay.launch.reports.scalars import COSTS

REFERENCE = "sasrec"


@dataclass(frozen=True, kw_only=True)
class Cell:
    """A cell's text; bold marks the best value of a comparison, faint a missing or incomplete one."""

    text: str
    bold: bool = False
    faint: bool = False


@dataclass(frozen=True, kw_only=True)
class Table:
    """Rows of cells below a header; the first `num_names` columns hold names, the others numbers."""

    title: str
    header: tuple[str, ...]
    rows: tuple[tuple[Cell, ...], ...]
    num_names: int
    note: str = ""


def accuracy_tables(groups: pl.DataFrame) -> Iterator[Table]:
    """Yield a table per dataset and kind of ranking; the best model of each context length is bold."""
    study = groups.filter(pl.col("variant").is_null())
    for dataset in unique(study, "dataset"):
        for kind in kinds(study):
            here = _with_best(study.filter(pl.col("dataset") == dataset), kind, "context_length")
            rows = [(*_names(row), *_metric_cells(row, kind), _seeds(row)) for row in _rows(here)]
            yield Table(
                title=f"{dataset}: ranked among {kind_name(kind)} (`{kind}`)",
                header=("context length", "model", *map(metric_name, METRICS), "seeds"),
                rows=tuple(rows),
                num_names=2,
            )


def ablation_tables(groups: pl.DataFrame) -> Iterator[Table]:
    """Yield a table per grid, dataset and kind of ranking; each model's best variant at a length is bold."""
    ablations = groups.filter(pl.col("variant").is_not_null())
    for (grid, dataset), here in ablations.group_by("grid", "dataset", maintain_order=True):
        setting = str(grid).replace("_", " ")
        for kind in kinds(here):
            rows = [
                (
                    *(*_names(row), Cell(text=row["variant"]), *_metric_cells(row, kind)),
                    *(_number(row, name, spread=False) for name in ("seconds_per_epoch", "train_peak_gib")),
                    _seeds(row),
                )
                for row in _rows(_with_best(here, kind, "context_length", "label"))
            ]
            costs = ("s per epoch", "peak memory, training (GiB)")
            yield Table(
                title=f"{setting} on {dataset}: ranked among {kind_name(kind)} (`{kind}`)",
                header=("context length", "model", setting, *map(metric_name, METRICS), *costs, "seeds"),
                rows=tuple(rows),
                num_names=3,
            )


def efficiency_tables(groups: pl.DataFrame) -> Iterator[Table]:
    """Yield a table per dataset, with each cost's multiple of the reference model at the same length."""
    study = groups.filter(pl.col("variant").is_null())
    for dataset in unique(study, "dataset"):
        rows = [
            (
                *_names(row),
                *(_relative(row, multiples, name) for name in COSTS),
                Cell(text=machines(row)),
                _seeds(row),
            )
            for row, multiples in with_multiples(study.filter(pl.col("dataset") == dataset))
        ]
        yield Table(
            title=f"{dataset}: cost, means over seeds",
            header=("context length", "model", *COSTS.values(), "ranks", "seeds"),
            rows=tuple(rows),
            num_names=2,
            note=f"In parentheses: the multiple of {display_name(REFERENCE)} at the same context length, on "
            "the same kind and number of devices.",
        )


def runs_table(runs: pl.DataFrame) -> Table:
    """Return the table of every run: its state, the reason if it is not finished, and its code."""
    rows = []
    for run in _rows(runs):
        error, progress = run["error"], run["progress"]
        reason = f"{error} ({progress})" if error and progress else error or progress or ""
        commit = run["commit"] or ""
        commit = commit[:10] + ("-dirty" if commit.endswith("-dirty") else "")
        state = Cell(text=run["state"], bold=run["state"] in ("failed", "missing"))
        others = (Cell(text=text or "") for text in (reason, run["checkpoint"], commit, run["host"]))
        rows.append((Cell(text=run["run"]), state, *others))
    header = ("run", "state", "error or progress", "checkpoint", "commit", "host")
    return Table(title="Every run", header=header, rows=tuple(rows), num_names=len(header))


def with_multiples(groups: pl.DataFrame) -> Iterator[tuple[Row, dict[str, float | None]]]:
    """Yield each group with its costs as multiples of the reference model's, None if not comparable.

    Groups are comparable if they have the same dataset, context length and grid, and if nothing known about
    their devices and ranks differs.
    """
    references: dict[tuple[object, ...], Row] = {}
    for row in _rows(groups):
        if row["model"] == REFERENCE:
            references.setdefault((row["dataset"], row["context_length"], row["grid"]), row)
    for row in _rows(groups):
        other = references.get((row["dataset"], row["context_length"], row["grid"]))
        if other and any(
            row[name] and other[name] and row[name] != other[name]
            for name in ("device", "ranks", "eval_device", "eval_ranks")
        ):
            other = None
        yield (
            row,
            {
                name: row[name] / other[name] if other and other[name] and row[name] is not None else None
                for name in COSTS
            },
        )


def machines(row: Row) -> str:
    """Return the number of ranks and the devices of a group's runs: 2 × NVIDIA H100 (evaluation: 1)."""
    text = " × ".join(", ".join(map(str, row[name])) for name in ("ranks", "device") if row[name]) or "–"
    others = row["eval_ranks"] if row["ranks"] != row["eval_ranks"] else []
    return f"{text} (evaluation: {', '.join(map(str, others))})" if others else text


def _rows(frame: pl.DataFrame) -> Iterator[Row]:
    return frame.iter_rows(named=True)


def _with_best(groups: pl.DataFrame, kind: str, *compared: str) -> pl.DataFrame:
    """Add a column NAME_best per metric: whether a group has the highest mean of several evaluated groups."""
    several = pl.col("evaluated").sum().over(*compared) > 1
    columns = [f"{kind}/{name}" for name in METRICS]
    return groups.with_columns(
        (several & (pl.col(name) == pl.col(name).max().over(*compared))).alias(f"{name}_best")
        for name in columns
    )


def _names(row: Row) -> tuple[Cell, Cell]:
    return Cell(text=f"{row['context_length']:,}"), Cell(text=row["label"])


def _metric_cells(row: Row, kind: str) -> Iterator[Cell]:
    for name in METRICS:
        column = f"{kind}/{name}"
        yield _number(row, column, digits=4, bold=bool(row[f"{column}_best"]))


def _seeds(row: Row) -> Cell:
    """Return the number of seeds; for a group with unfinished runs, also their states."""
    counts = Counter(row["state"])
    finished = counts.pop("finished", 0)
    rest = ", ".join(f"{number} {state}" for state, number in counts.items())
    return Cell(text=f"{finished} of {row['runs']} ({rest})" if rest else str(finished), faint=bool(rest))


def _number(
    row: Row, column: str, *, digits: int | None = None, bold: bool = False, spread: bool = True
) -> Cell:
    mean, sd = row[column], row[f"{column}_sd"]
    if mean is None:
        return Cell(text="–", faint=True)
    if digits is None:  # about three significant digits
        digits = 0 if mean >= 100 else 1 if mean >= 10 else 2 if mean >= 0.1 else 4
    deviation = f" ± {sd:,.{digits}f}" if spread and sd is not None else ""
    return Cell(text=f"{mean:,.{digits}f}{deviation}", bold=bold)


def _relative(row: Row, multiples: dict[str, float | None], name: str) -> Cell:
    cell, multiple = _number(row, name, spread=False), multiples[name]
    return cell if multiple is None else Cell(text=f"{cell.text} ({multiple:.2f}×)")
