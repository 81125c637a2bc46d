"""The arguments of `longplay sweep`: which runs, with which resources, and what to do."""

import argparse
import dataclasses
import re
from pathlib import Path

from longplay.launch.settings.common_arguments import at_least
from longplay.launch.settings.errors import ConfigError
from longplay.launch.settings.imports import add_import_argument
from longplay.launch.sweeps.cluster import Resources
from longplay.launch.sweeps.grid import (
    GRIDS,
    STUDY_LENGTHS,
    SweepGrid,
    named_datasets,
    prepared_datasets,
    study_recipes,
)

_GRID_OPTIONS = ("grid", "data", "models", "context_lengths", "seeds", "slots_per_step")


def add_grid_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the options that select the runs."""
    add_import_argument(parser)
    parser.add_argument(
        "--out",
        type=Path,
        metavar="DIR",
        help="folder of the sweep, on a file system that all nodes share (default sweeps/GRID)",
    )
    parser.add_argument(
        "--grid",
        choices=tuple(GRIDS),
        help="what varies: context lengths (study, the default) or one setting",
    )
    parser.add_argument(
        "--data",
        nargs="+",
        metavar="[NAME=]DIR",
        help="prepared datasets (default: all in data/); NAME is the dataset's name in tables",
    )
    parser.add_argument(
        "--models", nargs="+", metavar="RECIPE", help="recipes (default: one for each encoder)"
    )
    lengths = " ".join(map(str, STUDY_LENGTHS))
    parser.add_argument(
        *("--context-lengths", "--lengths"),
        nargs="+",
        metavar="L",
        help=f"default {lengths} for study, the recipe's own for the other grids",
    )
    parser.add_argument("--seeds", nargs="+", metavar="S", help="default 0")
    parser.add_argument(
        "--slots-per-step",
        type=at_least(1),
        metavar="N",
        help="choose the rows of a step so that it has about N slots at every context length (default: the "
        "recipe's rows)",
    )


def add_resource_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the options that select the cluster and the resources of a job."""
    parser.add_argument(
        "--cluster",
        choices=("slurm", "local", "debug"),
        help="local: processes on this machine; debug: this process (default: slurm where it is set up, else "
        "local)",
    )
    parser.add_argument(
        "--max-parallel",
        type=at_least(1),
        metavar="N",
        help="jobs that run at once (default: all on Slurm, 1 locally)",
    )
    parser.add_argument("--nodes", type=at_least(1), default=1, help="nodes of a job (default 1)")
    parser.add_argument(
        "--gpus-per-node", type=at_least(0), default=0, metavar="N", help="GPUs of a node (default 0: CPUs)"
    )
    parser.add_argument(
        "--ranks-per-node", type=at_least(1), metavar="N", help="default: one per GPU, or one without GPUs"
    )
    parser.add_argument("--cpus-per-task", type=at_least(1), metavar="N", help="CPUs of a rank")
    parser.add_argument("--mem", metavar="SIZE", help="memory of a node, in sbatch's format: 64G")
    parser.add_argument(
        "--time",
        dest="time_min",
        type=parse_minutes,
        default=24 * 60,
        metavar="LIMIT",
        help="time limit of one start: minutes, H:MM:SS or D-HH:MM:SS (default 24 h); then requeued",
    )
    parser.add_argument(
        "--signal-delay",
        dest="signal_delay_s",
        type=at_least(1),
        default=120,
        metavar="S",
        help="seconds before the time limit at which a run saves and is requeued (default 120)",
    )
    for name in ("partition", "account", "qos", "constraint"):
        parser.add_argument(f"--{name}", help="passed to sbatch")
    parser.add_argument(
        "--slurm-setup",
        dest="setup",
        action="append",
        default=[],
        metavar="LINE",
        help="shell line to run before the ranks start, such as 'module load cuda'; may be repeated",
    )


def add_action_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the options that select an action other than submitting, and those that wait."""
    action = parser.add_mutually_exclusive_group()
    action.add_argument("--dry-run", action="store_true", help="print what would run; submit nothing")
    action.add_argument("--status", action="store_true", help="print the state of every run; submit nothing")
    action.add_argument(
        "--cancel", action="store_true", help="cancel the sweep's jobs; the command without it resumes them"
    )
    parser.add_argument(
        "--watch", action="store_true", help="with --status: refresh until the last job has ended"
    )
    parser.add_argument(
        "--wait", action="store_true", help="wait until the jobs have ended; exit code 1 if any failed"
    )


def read_grid(args: argparse.Namespace, overrides: list[str], *, exists: bool) -> SweepGrid | None:
    """Return the grid that the options describe; None if the sweep `exists` and no option selects runs.

    Raises:
        ConfigError: an option is malformed, or no dataset is named or found.
    """
    if exists and not overrides and all(getattr(args, name) is None for name in _GRID_OPTIONS):
        return None
    data = args.data or prepared_datasets(Path("data"))
    if not data:
        raise ConfigError("--data: no prepared dataset in data/; make one with longplay prepare")
    grid = args.grid or "study"
    return SweepGrid(
        grid=grid,
        recipes=tuple(_split(args.models)) or study_recipes(),
        context_lengths=tuple(_whole_numbers("--context-lengths", args.context_lengths))
        or (STUDY_LENGTHS if grid == "study" else ()),
        datasets=named_datasets(data),
        seeds=tuple(_whole_numbers("--seeds", args.seeds)) or (0,),
        overrides=tuple(overrides),
        slots_per_step=args.slots_per_step,
    )


def read_resources(args: argparse.Namespace) -> Resources:
    """Return the resources of each job."""
    return Resources(**{field.name: getattr(args, field.name) for field in dataclasses.fields(Resources)})


def parse_minutes(text: str) -> int:
    """Return the minutes of a time in one of sbatch's formats, rounded up.

    Args:
        text: M, M:SS, H:MM:SS, D-H, D-H:MM or D-H:MM:SS.

    Raises:
        argparse.ArgumentTypeError: `text` is in none of these formats.
    """
    match = re.fullmatch(r"(?:(\d+)-)?(\d+)(?::(\d+))?(?::(\d+))?", text)
    if match:
        days, first, second, third = (int(part or 0) for part in match.groups())
        if match[1] is not None:
            seconds = 86400 * days + 3600 * first + 60 * second + third
        elif match[4] is not None:
            seconds = 3600 * first + 60 * second + third
        else:
            seconds = 60 * first + second
        if seconds:
            return -(-seconds // 60)
    raise argparse.ArgumentTypeError(f"{text!r} is not a time; give minutes, H:MM:SS or D-HH:MM:SS")


def _split(words: list[str] | None) -> list[str]:
    """Split words at commas."""
    return [part for word in words or () for part in word.split(",") if part]


def _whole_numbers(option: str, words: list[str] | None) -> list[int]:
    """Return the values of `option` as numbers."""
    values = _split(words)
    for value in values:
        if not re.fullmatch("[0-9]{1,19}", value):
            raise ConfigError(f"{option} {value[:40]}: is not a whole number of at most 19 digits")
    return [int(value) for value in values]
