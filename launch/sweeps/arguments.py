"""What `longplay sweep` can be told: which runs, and what each of them gets."""

import argparse
import re
from pathlib import Path

from longplay.launch.settings.errors import ConfigError
from longplay.launch.sweeps.cluster import Resources
from longplay.launch.sweeps.grid import GRIDS, MODELS, STUDY_LENGTHS


def add_grid_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the options that say which runs there are."""
    parser.add_argument(
        "--out", type=Path, metavar="DIR", help="folder of the sweep (default sweeps/GRID), seen by all nodes"
    )
    parser.add_argument(
        "--grid", choices=tuple(GRIDS), help="what varies: context lengths (study, the default), or a setting"
    )
    parser.add_argument(
        "--data",
        nargs="+",
        metavar="[NAME=]DIR",
        help="prepared datasets (default: those in data/); NAME is what tables call it",
    )
    parser.add_argument("--models", nargs="+", metavar="RECIPE", help=f"recipes (default {' '.join(MODELS)})")
    lengths = " ".join(map(str, STUDY_LENGTHS))
    parser.add_argument(
        *("--context-lengths", "--lengths"),
        nargs="+",
        metavar="L",
        help=f"default of study: {lengths}; of the others: the recipe's",
    )
    parser.add_argument("--seeds", nargs="+", metavar="S", help="default 0")
    parser.add_argument(
        "--slots-per-step",
        type=int,
        metavar="N",
        help="rows that make about N slots a step, whatever the context length (default: the recipe's rows)",
    )


def add_resource_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the options that say where they run and with what."""
    parser.add_argument(
        "--cluster",
        choices=("slurm", "local", "debug"),
        help="default: slurm where there is one, else local: this machine; debug: this process",
    )
    parser.add_argument("--max-parallel", type=int, metavar="N", help="jobs at once (default: local 1)")
    parser.add_argument("--nodes", type=int, default=1, help="of each job (default 1)")
    parser.add_argument("--gpus-per-node", type=int, default=0, metavar="N", help="default 0")
    parser.add_argument(
        "--ranks-per-node", type=int, metavar="N", help="default: one per GPU, or one where there is none"
    )
    parser.add_argument("--cpus-per-task", type=int, metavar="N", help="of each rank")
    parser.add_argument("--mem", metavar="SIZE", help="of each node, as sbatch takes it: 64G")
    parser.add_argument(
        "--time",
        type=parse_minutes,
        default=24 * 60,
        metavar="LIMIT",
        help="limit of one start: minutes, H:MM:SS or D-HH:MM:SS (default 24 h); a longer run is requeued",
    )
    parser.add_argument(
        "--signal-delay",
        type=int,
        default=120,
        metavar="S",
        help="seconds before the limit to save (default 120)",
    )
    for name in ("partition", "account", "qos", "constraint"):
        parser.add_argument(f"--{name}", help="as sbatch takes it")
    parser.add_argument(
        "--slurm-setup",
        action="append",
        default=[],
        metavar="LINE",
        help="shell line before a job's ranks, such as 'module load cuda'; may be repeated",
    )


def read_resources(args: argparse.Namespace) -> Resources:
    """What each job gets."""
    for name in (
        "nodes",
        "ranks_per_node",
        "cpus_per_task",
        "max_parallel",
        "signal_delay",
        "slots_per_step",
    ):
        value = getattr(args, name)
        if value is not None and value < 1:
            raise ConfigError(f"--{name.replace('_', '-')} {value}: must be at least 1")
    if args.gpus_per_node < 0:
        raise ConfigError(f"--gpus-per-node {args.gpus_per_node}: must be at least 0")
    return Resources(
        nodes=args.nodes,
        gpus_per_node=args.gpus_per_node,
        ranks_per_node=args.ranks_per_node,
        cpus_per_task=args.cpus_per_task,
        mem=args.mem,
        time_min=args.time,
        signal_delay_s=args.signal_delay,
        partition=args.partition,
        account=args.account,
        qos=args.qos,
        constraint=args.constraint,
        setup=tuple(args.slurm_setup),
        max_parallel=args.max_parallel,
    )


def parse_minutes(text: str) -> int:
    """Minutes that one of sbatch's forms of a time means: M, M:SS, H:MM:SS, D-H, D-H:MM, D-H:MM:SS."""
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
    raise argparse.ArgumentTypeError(f"{text!r} is not a time; write minutes, H:MM:SS or D-HH:MM:SS")


def split_words(words: list[str] | None) -> list[str]:
    """The words, which may also stand in one with commas between."""
    return [part for word in words or () for part in word.split(",") if part]


def whole_numbers(option: str, words: list[str] | None) -> list[int]:
    """The words of `option` as numbers."""
    numbers = []
    for word in split_words(words):
        if not word.isdigit():
            raise ConfigError(f"{option} {word}: is not a whole number")
        numbers.append(int(word))
    return numbers
