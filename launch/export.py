"""`longplay export RUN --out DIR`: write a run's model as plain files, which `longplay.load` opens."""

import argparse
import sys
from pathlib import Path
from typing import Any

from longplay.common.sizes import readable_size
from longplay.launch.evaluation.loading import find_checkpoint, open_dataset
from longplay.launch.exports.model_folder import check_output, write_export
from longplay.launch.settings.common_arguments import add_run_arguments
from longplay.launch.settings.saved import read_config


def register(subparsers: Any) -> None:
    """Add `export` to the `longplay` command."""
    parser = subparsers.add_parser(
        "export",
        description="Write the model of a run as plain files, which `longplay.load` opens in Python.",
    )
    add_run_arguments(parser)
    parser.add_argument("--out", type=Path, required=True, metavar="DIR", help="folder to write")
    parser.add_argument("--overwrite", action="store_true", help="replace the export in --out")
    parser.set_defaults(func=run)


def run(args: argparse.Namespace) -> int:
    """Run the command and return its exit code."""
    check_output(args.out, args.overwrite)
    config = read_config(args.run)
    dataset = open_dataset(args.run, args.data)
    checkpoint = find_checkpoint(args.run, args.checkpoint)
    width = config.encoder.d_model
    print(
        f"model    {config.encoder.model} of {args.run}, {checkpoint.path.name}; item table "
        f"{dataset.num_items:,} x {width}, {readable_size(4 * (dataset.num_items + 1) * width)}",
        flush=True,
    )
    num_bytes = write_export(args.out, args.run, config, dataset, checkpoint)
    print(f"exported {args.out} ({readable_size(num_bytes)}); in Python: longplay.load({str(args.out)!r})")
    return 0


if __name__ == "__main__":
    from longplay.launch.cli import main

    sys.exit(main(["export", *sys.argv[1:]]))
