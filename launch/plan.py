"""`longplay plan RECIPE --data DIR`: estimate what a run needs per rank and whether it fits."""

import argparse
import dataclasses
import json
import sys
from typing import Any

from longplay.common.sizes import parse_bytes
from longplay.data_shards.storage.dataset import Dataset
from longplay.launch.estimates.estimate_run import estimate_run
from longplay.launch.estimates.fitting import check_fits
from longplay.launch.settings.arguments import add_recipe_arguments, resolve_arguments
from longplay.launch.settings.common_arguments import add_data_argument, at_least


def register(subparsers: Any) -> None:
    """Add `plan` to the `longplay` command."""
    parser = subparsers.add_parser(
        "plan",
        description="Estimate the memory, traffic and steps per rank of `longplay train RECIPE`. The exit "
        "code is 2 if the run does not fit. --section.name VALUE overrides a setting, as in train.",
    )
    add_recipe_arguments(parser)
    add_data_argument(parser)
    parser.add_argument(
        "--world-size", type=at_least(1), default=1, metavar="W", help="number of ranks (default 1)"
    )
    parser.add_argument(
        "--local-ranks", type=at_least(1), metavar="N", help="number of ranks on one machine (default: all)"
    )
    memory = parser.add_mutually_exclusive_group()
    memory.add_argument(
        "--memory",
        type=parse_bytes,
        metavar="24GiB",
        help="memory of one CPU rank (default: what is available here, divided by the local ranks)",
    )
    memory.add_argument(
        "--gpu-memory",
        type=parse_bytes,
        metavar="80GiB",
        help="memory of one GPU; estimates a run on GPUs, even on a machine without one",
    )
    parser.add_argument("--json", action="store_true", help="print one JSON object and nothing else")
    parser.set_defaults(func=run)


def run(args: argparse.Namespace, overrides: list[str]) -> int:
    """Print the estimate and return the exit code."""
    config = resolve_arguments(args, overrides)
    dataset = Dataset.open(args.data, on_bad_shard=config.data.on_bad_shard)
    given = args.gpu_memory if args.gpu_memory is not None else args.memory
    estimate = estimate_run(
        config,
        dataset,
        world_size=args.world_size,
        device_type="cuda" if args.gpu_memory is not None else "cpu" if args.memory is not None else None,
        memory_bytes=given,
        local_ranks=args.local_ranks,
    )
    if args.json:
        totals = {
            "step_bytes": estimate.step_bytes,
            "total_bytes": estimate.total_bytes,
            "fits": estimate.fits(),
        }
        print(json.dumps(dataclasses.asdict(estimate) | totals))
    else:
        print(
            f"{args.recipe}: {config.encoder.model}, {config.encoder.num_blocks} block(s) of width "
            f"{config.encoder.d_model}, context length {config.context_length}, {dataset.num_items:,} items"
        )
        print(estimate.table(), flush=True)
    check_fits(estimate, config, dataset)
    return 0


if __name__ == "__main__":
    from longplay.launch.cli import main

    sys.exit(main(["plan", *sys.argv[1:]]))
