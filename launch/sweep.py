"""`longplay sweep --data DIR --out DIR`: train and evaluate a grid of runs, on Slurm or locally."""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from longplay.common.atomic import named_errors
from longplay.data_shards.storage.locations import trusted_location
from longplay.launch.settings.errors import ConfigError
from longplay.launch.sweeps.arguments import (
    add_action_arguments,
    add_grid_arguments,
    add_resource_arguments,
    read_grid,
    read_resources,
)
from longplay.launch.sweeps.dry_run import dry_run
from longplay.launch.sweeps.folder import SweepFolder, open_sweep
from longplay.launch.sweeps.grid import SweepJobSpec
from longplay.launch.sweeps.job import SweepJob
from longplay.launch.sweeps.possible_runs import check_runs
from longplay.launch.sweeps.running import run_in_processes, run_one_by_one, submit
from longplay.launch.sweeps.slurm_jobs import choose_cluster
from longplay.launch.sweeps.status import sweep_status
from longplay.launch.sweeps.watching import cancel_sweep, show_status, wait_for_end


def register(subparsers: Any) -> None:
    """Add `sweep` to the `longplay` command."""
    parser = subparsers.add_parser(
        "sweep",
        description="Train and evaluate every run of a grid, on Slurm or on this machine. Run it again to "
        "submit runs that are missing or failed; with --out alone, all such runs of the sweep. "
        "--section.name VALUE overrides a setting of all runs; `longplay train RECIPE --help` lists all "
        "settings.",
        allow_abbrev=False,
    )
    add_grid_arguments(parser)
    add_resource_arguments(parser)
    add_action_arguments(parser)
    parser.set_defaults(func=run, takes_overrides=True)


def run(args: argparse.Namespace, overrides: list[str]) -> int:
    """Run the command and return its exit code."""
    out = args.out or Path("sweeps") / (args.grid or "study")
    if args.status or args.cancel:
        if overrides:
            raise ConfigError(f"{overrides[0]}: --status and --cancel take no settings")
        folder = open_sweep(out)
        return cancel_sweep(folder) if args.cancel else show_status(folder, watch=args.watch)
    resources = read_resources(args)
    folder = SweepFolder(out)
    grid = read_grid(args, overrides, exists=bool(folder.jobs))
    if grid is None:
        specs = _saved_jobs(folder)
    else:
        specs = grid.jobs()
        check_runs(specs, resources)
    if args.dry_run:
        return dry_run(folder, folder.add(specs), resources)
    cluster = choose_cluster(args.cluster)
    with folder.locked(), named_errors(folder.path):
        folder = SweepFolder(out)  # read again under the lock
        specs = folder.add(specs)
        due = _due(folder, specs)
        folder.write()
        print(f"sweep    {folder.path}: {_counts(specs, due)}", flush=True)
        if due and cluster == "debug":
            return run_one_by_one(folder, due, resources)
        if due and cluster == "local":
            return run_in_processes(folder, due, resources)
        if due:
            submit(folder, due, resources)
    print(f"watch    longplay sweep --out {out} --status --watch")
    return wait_for_end(folder, {spec.name for spec in specs}) if args.wait else 0


def _saved_jobs(folder: SweepFolder) -> list[SweepJobSpec]:
    """Return the jobs in sweep.json.

    Raises:
        DataError: the dataset of one is a command, which is only run if the user types it.
    """
    for spec in folder.jobs.values():
        trusted_location(spec.data, folder.file)
    return list(folder.jobs.values())


def _due(folder: SweepFolder, specs: list[SweepJobSpec]) -> list[SweepJob]:
    """Return the jobs of `specs` that are neither finished nor pending or running."""
    names = {spec.name for spec in specs}
    return [
        folder.job(status.spec)
        for status in sweep_status(folder)
        if status.spec.name in names and status.state != "finished" and not status.live
    ]


def _counts(specs: Sequence[SweepJobSpec], due: Sequence[SweepJob]) -> str:
    rest = len(specs) - len(due)
    kept = f", {rest} finished or in progress" if rest else ""
    return f"{len(specs)} runs{kept}, {len(due) or 'none'} to submit"


if __name__ == "__main__":
    from longplay.launch.cli import main

    sys.exit(main(["sweep", *sys.argv[1:]]))
