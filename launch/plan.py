"""`longplay plan RECIPE --data DIR`: what a run will take per rank, and what to change if it cannot fit."""

import argparse
import dataclasses
import json
import sys
from typing import Any

from longplay.common.sizes import parse_bytes
from longplay.data_shards.storage.dataset import Dataset
from longplay.launch.estimates.fitting import check_plan
from longplay.launch.estimates.memory_estimate import plan_run
from longplay.launch.settings.data_arguments import data_location
from longplay.launch.settings.recipes import RECIPES, get_recipe
from longplay.launch.settings.resolving import resolve


def register(subparsers: Any) -> None:
    """Add `plan` to the `longplay` command."""
    parser = subparsers.add_parser(
        "plan",
        help="memory, traffic and steps of a run, before it starts",
        description="Estimate what `longplay train RECIPE` takes per rank; exit code 2 if it cannot fit. "
        "--section.name value overrides a setting of the recipe, as in train.",
    )
    parser.add_argument("recipe", help=f"one of {', '.join(RECIPES)}")
    parser.add_argument(
        "--data", type=data_location, required=True, help="folder made by `longplay prepare`, or its URL"
    )
    parser.add_argument("--world-size", type=int, default=1, metavar="W", help="ranks (default 1)")
    parser.add_argument(
        "--local-ranks", type=int, metavar="N", help="ranks on one machine (default: all of them)"
    )
    memory = parser.add_mutually_exclusive_group()
    memory.add_argument(
        "--memory", type=parse_bytes, metavar="24GiB", help="of one rank on a CPU (default: this machine's)"
    )
    memory.add_argument(
        "--gpu-memory", type=parse_bytes, metavar="80GiB", help="of one GPU; plans for GPUs, here or not"
    )
    parser.add_argument("--json", action="store_true", help="print one JSON object and nothing else")
    parser.set_defaults(func=run, takes_overrides=True)


def run(args: argparse.Namespace, overrides: list[str]) -> int:
    """The command; returns its exit code."""
    for name in ("world_size", "local_ranks"):
        value = getattr(args, name)
        if value is not None and value < 1:
            raise ValueError(f"--{name.replace('_', '-')} {value}: must be at least 1")
    config = resolve(args.recipe, get_recipe(args.recipe), overrides)
    dataset = Dataset.open(args.data, on_bad_shard=config.data.on_bad_shard)
    given = args.gpu_memory if args.gpu_memory is not None else args.memory
    plan = plan_run(
        config,
        dataset,
        world_size=args.world_size,
        device_type="cuda" if args.gpu_memory is not None else "cpu" if args.memory is not None else None,
        memory_bytes=given,
        local_ranks=args.local_ranks,
    )
    if args.json:
        totals = {"step_bytes": plan.step_bytes, "total_bytes": plan.total_bytes, "fits": plan.fits()}
        print(json.dumps(dataclasses.asdict(plan) | totals))
    else:
        print(
            f"{args.recipe}: {config.encoder.model}, {config.encoder.num_blocks} block(s) of width "
            f"{config.encoder.d_model}, context length {config.context_length}, {dataset.num_items:,} items"
        )
        print(plan.table(), flush=True)
    check_plan(plan, config, dataset)
    return 0


if __name__ == "__main__":
    from longplay.launch.cli import main

    sys.exit(main(["plan", *sys.argv[1:]]))
