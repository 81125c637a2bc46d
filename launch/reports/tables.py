"""The tables of a report, as cells that a page then writes in Markdown or HTML; and the same as CSV."""

import csv
import io
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import groupby

from longplay.launch.reports.data import Run
from longplay.launch.reports.groups import Group, Stat, best, datasets, kinds, reference

METRICS = ("hit@10", "ndcg@10", "hit@20", "ndcg@20")
METRIC_NAMES = {name: name.replace("hit", "HR").upper() for name in METRICS}
KIND_NAMES = {
    "full_unseen": "all items but those already seen",
    "full": "all items, those already seen too",
}
COSTS = {
    "train_peak_gib": "peak memory, training (GiB)",
    "eval_peak_gib": "peak memory, evaluation (GiB)",
    "seconds_per_epoch": "training (s per epoch)",
    "events_per_s": "training (events/s)",
    "eval_s": "evaluation (s)",
}


@dataclass(frozen=True, kw_only=True)
class Cell:
    """Text, and whether it is the best of its kind, or tells of something that is not there."""

    text: str
    bold: bool = False
    faint: bool = False


@dataclass(frozen=True, kw_only=True)
class Table:
    """Rows of cells below a header; the first `num_names` columns are names, the others numbers."""

    title: str
    header: tuple[str, ...]
    rows: tuple[tuple[Cell, ...], ...]
    num_names: int
    note: str = ""


def kind_name(kind: str) -> str:
    """What the target is ranked among."""
    if kind.startswith("sampled"):
        return f"{kind.removeprefix('sampled')} sampled items"
    return KIND_NAMES.get(kind, kind)


def accuracy_tables(groups: Sequence[Group]) -> Iterator[Table]:
    """One per dataset and kind of ranking; the best of each context length is bold."""
    study = [group for group in groups if group.variant is None]
    for dataset in datasets(study):
        here = [group for group in study if group.dataset == dataset]
        for kind in kinds(study):
            rows = []
            for length, members in groupby(here, key=lambda group: group.context_length):
                for group, cells in zip(same := list(members), _metric_cells(same, kind), strict=True):
                    rows.append((Cell(text=f"{length:,}"), Cell(text=group.label), *cells, _seeds(group)))
            yield Table(
                title=f"{dataset}: ranked among {kind_name(kind)} (`{kind}`)",
                header=("context length", "model", *METRIC_NAMES.values(), "seeds"),
                rows=tuple(rows),
                num_names=2,
            )


def ablation_tables(groups: Sequence[Group]) -> Iterator[Table]:
    """One per grid, dataset and kind of ranking; the best variant of each model and length is bold."""
    ablations = [group for group in groups if group.variant is not None]
    for grid in dict.fromkeys(group.grid for group in ablations):
        for dataset in datasets(group for group in ablations if group.grid == grid):
            here = [group for group in ablations if (group.grid, group.dataset) == (grid, dataset)]
            for kind in kinds(here):
                yield _ablation_table(grid, dataset, here, kind)


def _ablation_table(grid: str, dataset: str, here: list[Group], kind: str) -> Table:
    rows = []
    for (length, label), members in groupby(here, key=lambda group: (group.context_length, group.label)):
        for group, cells in zip(same := list(members), _metric_cells(same, kind), strict=True):
            names = (f"{length:,}", label, str(group.variant))
            costs = (
                _number(group.cost(name), spread=False) for name in ("seconds_per_epoch", "train_peak_gib")
            )
            rows.append((*(Cell(text=name) for name in names), *cells, *costs, _seeds(group)))
    setting = grid.replace("_", " ")
    return Table(
        title=f"{setting} on {dataset}: ranked among {kind_name(kind)} (`{kind}`)",
        header=(
            *("context length", "model", setting, *METRIC_NAMES.values()),
            *("s per epoch", "peak memory, training (GiB)", "seeds"),
        ),
        rows=tuple(rows),
        num_names=3,
    )


def efficiency_tables(groups: Sequence[Group]) -> Iterator[Table]:
    """One per dataset; behind each number its multiple of SASRec's at the same length."""
    study = [group for group in groups if group.variant is None]
    for dataset in datasets(study):
        here = [group for group in study if group.dataset == dataset]
        rows = []
        for group in here:
            other = reference(group, here)
            cells = [_relative(group.cost(name), other.cost(name) if other else None) for name in COSTS]
            machines = Cell(text=_machines(group))
            names = (Cell(text=f"{group.context_length:,}"), Cell(text=group.label))
            rows.append((*names, *cells, machines, _seeds(group)))
        yield Table(
            title=f"{dataset}: what it costs, means over seeds",
            header=("context length", "model", *COSTS.values(), "ranks", "seeds"),
            rows=tuple(rows),
            num_names=2,
            note="In brackets: the multiple of SASRec at the same context length, on the same kind and "
            "number of devices.",
        )


def runs_table(runs: Sequence[Run]) -> Table:
    """Every run: its state, its code, and why it is not finished."""
    rows = []
    for run in runs:
        why = f"{run.error} ({run.progress})" if run.error and run.progress else run.error or run.progress
        commit = run.about.get("commit", "")
        commit = commit[:10] + ("-dirty" if commit.endswith("-dirty") else "")
        host, checkpoint = run.about.get("host", ""), run.about.get("checkpoint", "")
        bad = run.state in ("failed", "missing")
        cells = (run.name, run.state, why or "", checkpoint, commit, host)
        rows.append(tuple(Cell(text=text, bold=bad and at == 1) for at, text in enumerate(cells)))
    header = ("run", "state", "error or progress", "checkpoint", "commit", "host")
    return Table(title="Every run", header=header, rows=tuple(rows), num_names=len(header))


# ---------------------------------------------------------------------- cells


def _metric_cells(groups: Sequence[Group], kind: str) -> list[list[Cell]]:
    """For each of the groups that are compared, a cell per metric."""
    tops = {name: best(groups, kind, name) for name in METRICS}
    compared = sum(any(run.test for run in group.runs) for group in groups) > 1
    return [
        [_number(group.metric(kind, name), digits=4, bold=compared and at in tops[name]) for name in METRICS]
        for at, group in enumerate(groups)
    ]


def _seeds(group: Group) -> Cell:
    return Cell(text=group.seeds(), faint=any(run.state != "finished" for run in group.runs))


def _number(stat: Stat | None, *, digits: int | None = None, bold: bool = False, spread: bool = True) -> Cell:
    if stat is None:
        return Cell(text="–", faint=True)
    sd = f" ± {_digits(stat.sd, digits, like=stat.mean)}" if spread and stat.sd is not None else ""
    return Cell(text=_digits(stat.mean, digits, like=stat.mean) + sd, bold=bold)


def _relative(stat: Stat | None, other: Stat | None) -> Cell:
    cell = _number(stat, spread=False)
    if stat is None or other is None or not other.mean:
        return cell
    return Cell(text=f"{cell.text} ({stat.mean / other.mean:.2f}×)")


def _digits(value: float, digits: int | None, *, like: float) -> str:
    """About three digits where `digits` does not say how many decimals."""
    if digits is None:
        digits = 0 if like >= 100 else 1 if like >= 10 else 2 if like >= 0.1 else 4
    return f"{value:,.{digits}f}"


def _machines(group: Group) -> str:
    """What the runs ran on: 2 × NVIDIA H100."""
    ranks, devices = sorted(group.values_of("ranks")), sorted(group.values_of("device"))
    return " × ".join(", ".join(map(str, found)) for found in (ranks, devices) if found) or "–"


# ---------------------------------------------------------------------- CSV


def accuracy_csv(groups: Sequence[Group]) -> str:
    """A row per group and kind of ranking: means, sample standard deviations, seeds."""
    rows = [
        [*_names(group), kind, *_counts(group), *_stats(group.metric(kind, name) for name in METRICS)]
        for group in groups
        if group.variant is None
        for kind in kinds(groups)
    ]
    return _csv([*_NAMES, "kind", *_COUNTS, *_with_sd(METRICS)], rows)


def ablation_csv(groups: Sequence[Group]) -> str:
    """As accuracy.csv, for the variants of the ablation grids."""
    rows = [
        [
            *_names(group),
            *(group.grid, group.variant, kind, *_counts(group)),
            *_stats(group.metric(kind, name) for name in METRICS),
            *_stats(group.cost(name) for name in COSTS),
        ]
        for group in groups
        if group.variant is not None
        for kind in kinds(groups)
    ]
    return _csv([*_NAMES, "grid", "variant", "kind", *_COUNTS, *_with_sd((*METRICS, *COSTS))], rows)


def efficiency_csv(groups: Sequence[Group]) -> str:
    """A row per group: means, sample standard deviations, multiples of SASRec."""
    rows = []
    for group in groups:
        if group.variant is None:
            other = reference(group, groups)
            ratios = []
            for name in COSTS:
                mine, theirs = group.cost(name), other.cost(name) if other else None
                ratios.append(mine.mean / theirs.mean if mine and theirs and theirs.mean else None)
            stats = _stats(group.cost(name) for name in COSTS)
            rows.append([*_names(group), *_counts(group), _machines(group), *stats, *ratios])
    ratio_names = [f"{name}_of_sasrec" for name in COSTS]
    return _csv([*_NAMES, *_COUNTS, "ranks", *_with_sd(tuple(COSTS)), *ratio_names], rows)


def runs_csv(runs: Sequence[Run]) -> str:
    """A row per run with all that is known of it."""
    measured = sorted({(kind, name) for run in runs for kind, values in run.test.items() for name in values})
    header = [
        *("run", "folder", "dataset", "context_length", "model", "recipe", "grid", "variant", "seed"),
        *(
            "state",
            "error",
            "progress",
            *COSTS,
            "device",
            "eval_device",
            "ranks",
            "checkpoint",
            "commit",
            "host",
            "torch",
        ),
        *(f"{kind}/{name}" for kind, name in measured),
    ]
    rows = [
        [
            *(run.name, run.path, run.dataset, run.context_length, run.model, run.recipe, run.grid),
            *(run.variant, run.seed, run.state, run.error, run.progress),
            *(getattr(run.costs, name) for name in COSTS),
            *(run.device, run.eval_device, run.ranks),
            *(run.about.get(name) for name in ("checkpoint", "commit", "host", "torch")),
            *(run.test.get(kind, {}).get(name) for kind, name in measured),
        ]
        for run in runs
    ]
    return _csv(header, rows)


_NAMES = ("dataset", "context_length", "model")
_COUNTS = ("runs", "finished")


def _names(group: Group) -> tuple[object, ...]:
    return (*group.place, group.label)


def _counts(group: Group) -> tuple[int, int]:
    return len(group.runs), sum(run.state == "finished" for run in group.runs)


def _with_sd(names: Sequence[str]) -> list[str]:
    return [column for name in names for column in (name, f"{name}_sd")]


def _stats(stats: Iterator[Stat | None]) -> list[float | None]:
    return [value for stat in stats for value in ((stat.mean, stat.sd) if stat else (None, None))]


def _csv(header: Sequence[str], rows: Sequence[Sequence[object]]) -> str:
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(header)
    writer.writerows(rows)
    return text.getvalue()
