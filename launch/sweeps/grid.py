"""The runs of a sweep: context lengths x models x datasets x seeds, or an ablation of one setting."""

import itertools
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated

from pydantic import Field

from longplay.common.settings import Count, NonNegativeInt
from longplay.data_shards.storage.locations import Location, absolute, parse_location
from longplay.launch.settings.config import RunConfig
from longplay.launch.settings.errors import ConfigError
from longplay.launch.settings.overrides import parse_overrides
from longplay.launch.settings.recipes import RECIPES, get_recipe
from longplay.launch.settings.resolving import resolve
from longplay.models.base.registry import ENCODERS

STUDY_LENGTHS = (250, 500, 1000, 2000, 5000)

# Grid -> the setting that it varies, with its values; the study varies the context length.
GRIDS: dict[str, tuple[str, tuple[str, ...]] | None] = {
    "study": None,
    "positional_embedding": ("encoder.positional_embedding", ("true", "false")),
    "dropout": ("encoder.dropout", ("0.0", "0.1", "0.2", "0.3", "0.5")),
    "layer_norm": ("encoder.layer_norm", ("true", "false")),
    "blocks": ("encoder.num_blocks", ("1", "2", "3", "4")),
}


def study_recipes() -> tuple[str, ...]:
    """Return the recipes that are named after an encoder, one for each."""
    return tuple(name for name in RECIPES if name in ENCODERS)


@dataclass(frozen=True, kw_only=True)
class SweepGrid:
    """The axes of a sweep; `jobs` returns their product.

    Attributes:
        grid: one of GRIDS.
        context_lengths: empty = each recipe's own.
        datasets: (label, folder or URL) of each dataset.
        overrides: settings of every run, in the form of `longplay train RECIPE --section.name VALUE`.
        slots_per_step: number of slots in a step at every context length; data.rows_per_step follows from it.
            None = the recipe's rows.
    """

    grid: str = "study"
    recipes: tuple[str, ...] = field(default_factory=study_recipes)
    context_lengths: tuple[int, ...] = ()
    datasets: tuple[tuple[str, str], ...]
    seeds: tuple[int, ...] = (0,)
    overrides: tuple[str, ...] = ()
    slots_per_step: int | None = None

    def jobs(self) -> list["SweepJobSpec"]:
        """Return every run of the grid, with validated settings.

        Raises:
            ConfigError: a recipe or setting does not exist, or the grid itself sets it.
        """
        self._check_overrides()
        return list(self._each())

    def _each(self) -> Iterator["SweepJobSpec"]:
        lengths: Sequence[int | None] = self.context_lengths or (None,)
        varied = GRIDS[self.grid]
        values: Sequence[str | None] = varied[1] if varied else (None,)
        for (label, data), length, recipe, value, seed in itertools.product(
            self.datasets, lengths, self.recipes, values, self.seeds
        ):
            words = [*self.overrides]
            if length is not None:
                words += ["--context_length", str(length)]
            if varied and value is not None:
                words += [f"--{varied[0]}", value]
            words += ["--seed", str(seed)]
            config = resolve(recipe, get_recipe(recipe), words)
            if self.slots_per_step is not None:
                words += ["--data.rows_per_step", str(_rows_per_step(config, self.slots_per_step))]
            variant = "" if value is None else f"-{self.grid}_{value}"
            yield SweepJobSpec(
                name=f"{label}-{recipe}-L{config.context_length}{variant}-s{seed}",
                recipe=recipe,
                model=config.encoder.model,
                context_length=config.context_length,
                dataset=label,
                data=data,
                seed=seed,
                grid=self.grid,
                variant=value,
                overrides=tuple(words),
            )

    def _check_overrides(self) -> None:
        varied = GRIDS[self.grid]
        taken = {"context_length": "--context-lengths", "seed": "--seeds", "encoder.model": "--models"}
        if varied:
            taken[varied[0]] = "--grid"
        if self.slots_per_step is not None:
            taken["data.rows_per_step"] = "--slots-per-step"
        for name, _ in parse_overrides(self.overrides):
            if name in taken:
                raise ConfigError(f"--{name}: is set by the sweep; use {taken[name]}")


@dataclass(frozen=True, kw_only=True)
class SweepJobSpec:
    """One run of a sweep; `overrides` holds all its settings on top of the recipe."""

    name: Annotated[str, Field(pattern=r"^[\w.-]+$")]
    recipe: str
    model: str
    context_length: Count
    dataset: str
    data: str
    seed: NonNegativeInt
    grid: str
    variant: str | None
    overrides: tuple[str, ...]

    @property
    def config(self) -> RunConfig:
        return resolve(self.recipe, get_recipe(self.recipe), self.overrides)

    def run_folder(self, sweep: Path) -> Path:
        """Return the run folder."""
        return sweep / "runs" / self.name


def named_datasets(words: Sequence[str]) -> tuple[tuple[str, str], ...]:
    """Return (label, absolute path or URL) of each `DIR`, `URL` or `NAME=DIR`.

    The default label is the folder's name.

    Raises:
        ConfigError: two datasets have the same label, or a folder holds no dataset.
    """
    found: dict[str, str] = {}
    for word in words:
        match = re.match(r"([\w.-]+)=(.+)", word)
        named = bool(match) and not Path(word).exists()
        location: Location = parse_location(match[2] if match and named else word)
        place = absolute(location)
        label = match[1] if match and named else _label(place)
        if found.get(label, place) != place:
            raise ConfigError(
                f"--data {found[label]} and {place}: both have the name {label!r}; "
                f"give another with --data OTHER={place}"
            )
        if isinstance(location, Path) and not (location / "manifest.json").is_file():
            raise ConfigError(f"--data {place}: has no manifest.json; give a folder of `longplay prepare`")
        found[label] = place
    return tuple(found.items())


def prepared_datasets(folder: Path) -> list[str]:
    """Return the prepared datasets in `folder`."""
    return [str(path.parent) for path in sorted(folder.glob("*/manifest.json"))]


def _label(place: str) -> str:
    parts = [part for part in re.split(r"[/?#]", place) if part]
    return re.sub(r"[^\w.]+", "_", parts[-1] if parts else "data")


def _rows_per_step(config: RunConfig, slots: int) -> int:
    """Return the rows that hold about `slots` slots: a multiple of the lanes, at least one row per lane."""
    lanes = config.data.num_lanes
    return lanes * max(1, round(slots / (config.context_length * lanes)))
