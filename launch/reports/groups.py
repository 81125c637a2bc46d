"""Runs that differ in their seed alone, taken together: means and spreads."""

import math
import statistics
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace

from longplay.launch.reports.data import MODEL_NAMES, Run

Place = tuple[str, int]


@dataclass(frozen=True, kw_only=True)
class Stat:
    """A mean over seeds and the sample standard deviation, None for a single seed."""

    mean: float
    sd: float | None
    count: int

    @classmethod
    def of(cls, values: Iterable[float | None]) -> "Stat | None":
        """None if there is no value."""
        there = [value for value in values if value is not None]
        if not there:
            return None
        sd = statistics.stdev(there) if len(there) > 1 else None
        return cls(mean=statistics.fmean(there), sd=sd, count=len(there))


@dataclass(frozen=True, kw_only=True)
class Group:
    """Runs of one model in one setting; `label` tells it from all others of its dataset and length."""

    dataset: str
    context_length: int
    model: str
    label: str
    grid: str
    variant: str | None
    runs: tuple[Run, ...]

    @property
    def place(self) -> Place:
        """Groups of one place are compared with each other."""
        return self.dataset, self.context_length

    def metric(self, kind: str, name: str) -> Stat | None:
        """Of the test split, over the runs that are evaluated."""
        return Stat.of(run.test.get(kind, {}).get(name) for run in self.runs)

    def cost(self, name: str) -> Stat | None:
        """Over all runs that say it, finished or not."""
        return Stat.of(getattr(run.costs, name) for run in self.runs)

    def values_of(self, name: str) -> set[str | int]:
        """What the runs say of themselves: "device", "eval_device" or "ranks"."""
        return {getattr(run, name) for run in self.runs} - {None, ""}

    def seeds(self) -> str:
        """How many seeds there are, and what became of those that did not finish."""
        counts = Counter(run.state for run in self.runs)
        finished = counts.pop("finished", 0)
        if not counts:
            return str(finished)
        rest = ", ".join(f"{number} {state}" for state, number in counts.items())
        return f"{finished} of {len(self.runs)} ({rest})"


def group_runs(runs: Sequence[Run]) -> list[Group]:
    """Runs by what they are but for their seed; by dataset, length, model and variant in order."""
    taken: dict[tuple[object, ...], list[Run]] = {}
    for run in runs:
        key = (run.dataset, run.context_length, run.recipe, run.grid, run.variant, run.settings)
        again = 0  # the same seed once more is no second sample
        while any(other.seed == run.seed for other in taken.get((*key, again), ())):
            again += 1
        taken.setdefault((*key, again), []).append(run)
    groups = [
        Group(
            dataset=first.dataset,
            context_length=first.context_length,
            model=first.model,
            label=MODEL_NAMES.get(first.recipe, first.recipe),
            grid=first.grid,
            variant=first.variant,
            runs=tuple(members),
        )
        for members in taken.values()
        for first in members[:1]
    ]
    return sorted(_told_apart(groups), key=_order)


def _told_apart(groups: list[Group]) -> list[Group]:
    """The groups, with a name in brackets where others of the same model would look the same."""
    alike: dict[tuple[object, ...], list[Group]] = {}
    for group in groups:
        alike.setdefault((*group.place, group.label, group.grid, group.variant), []).append(group)
    told = []
    for same in alike.values():
        if len(same) == 1:
            told += same
            continue
        sources = {group.runs[0].source for group in same}
        by_source = len({source.name for source in sources}) == len(same)
        for group in same:
            name = group.runs[0].source.name if by_source else group.runs[0].name
            told.append(replace(group, label=f"{group.label} ({name})"))
    return told


def _order(group: Group) -> tuple[object, ...]:
    names = list(MODEL_NAMES)
    rank = names.index(group.model) if group.model in names else len(names)
    variant = group.variant or ""
    try:
        number = float(variant)
    except ValueError:
        number = math.inf
    return (group.dataset, group.context_length, group.grid, rank, group.label, number, variant)


def datasets(groups: Iterable[Group]) -> list[str]:
    return list(dict.fromkeys(group.dataset for group in groups))


def kinds(groups: Iterable[Group]) -> list[str]:
    """The kinds of metrics that the runs have: full_unseen first, then full, then sampled ones."""
    found = {kind for group in groups for run in group.runs for kind in run.test}
    first = [kind for kind in ("full_unseen", "full") if kind in found]
    return first + sorted(found - set(first)) or ["full_unseen", "full", "sampled100"]


def reference(group: Group, groups: Iterable[Group]) -> Group | None:
    """SASRec where `group` is compared: same dataset and length, and the same machines."""
    for other in groups:
        if other.model == "sasrec" and other.place == group.place and other.grid == group.grid:
            return other if _on_same_machines(group, other) else None
    return None


def _on_same_machines(one: Group, other: Group) -> bool:
    """Whether all that is known of devices and ranks is the same; ranks are known once a run is evaluated."""
    for name in ("device", "eval_device", "ranks"):
        mine, theirs = one.values_of(name), other.values_of(name)
        if mine and theirs and mine != theirs:
            return False
    return True


def best(groups: Sequence[Group], kind: str, name: str) -> set[int]:
    """Positions of the groups with the highest mean of a metric."""
    means = [stat.mean if (stat := group.metric(kind, name)) else -math.inf for group in groups]
    top = max(means, default=-math.inf)
    return {at for at, mean in enumerate(means) if mean == top and math.isfinite(top)}
