"""`longplay sweep --data DIR --out DIR`: many runs, as one job array on Slurm or here; repeated, it finishes
what is missing.
"""

import argparse
import os
import signal
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from longplay.common.sizes import gib
from longplay.data_shards.storage.dataset import Dataset
from longplay.data_shards.storage.locations import parse_location
from longplay.launch.console.signals import terminable
from longplay.launch.settings.errors import ConfigError
from longplay.launch.sweeps.arguments import (
    add_grid_arguments,
    add_resource_arguments,
    read_resources,
    split_words,
    whole_numbers,
)
from longplay.launch.sweeps.cluster import (
    ClusterName,
    LocalQueue,
    Resources,
    Submission,
    cancel,
    choose_cluster,
    run_here,
    submit_to_slurm,
)
from longplay.launch.sweeps.folder import SweepFolder
from longplay.launch.sweeps.grid import (
    MODELS,
    STUDY_LENGTHS,
    SweepGrid,
    SweepJobSpec,
    named_datasets,
    prepared_datasets,
)
from longplay.launch.sweeps.job import SweepJob
from longplay.launch.sweeps.status import JobStatus, as_table, open_sweep, summary, sweep_status

_REFRESH_S = 5.0
_GRID_OPTIONS = ("data", "models", "context_lengths", "seeds", "slots_per_step")


def register(subparsers: Any) -> None:
    """Add `sweep` to the `longplay` command."""
    parser = subparsers.add_parser(
        "sweep",
        help="context lengths x models x datasets x seeds, on Slurm or here",
        description="Train and evaluate every run of a grid, as one job array. The same command again "
        "submits what is missing or failed; with --out alone, of all that is there. --section.name value "
        "overrides a setting of all runs, as in train.",
        allow_abbrev=False,
    )
    add_grid_arguments(parser)
    add_resource_arguments(parser)
    what = parser.add_mutually_exclusive_group()
    what.add_argument("--dry-run", action="store_true", help="say what would run, and submit nothing")
    what.add_argument("--status", action="store_true", help="show how far the sweep is, and submit nothing")
    what.add_argument("--cancel", action="store_true", help="end the sweep's jobs; the command again goes on")
    parser.add_argument(
        "--watch", action="store_true", help="with --status: keep it up to date until the end"
    )
    parser.add_argument(
        "--wait", action="store_true", help="wait until the jobs have ended; exit code 1 if any failed"
    )
    parser.set_defaults(func=run, takes_overrides=True)


def run(args: argparse.Namespace, overrides: list[str]) -> int:
    """The command; returns its exit code."""
    out = args.out or Path("sweeps") / (args.grid or "study")
    if args.status or args.cancel:
        if overrides:
            raise ConfigError(f"{overrides[0]}: --status and --cancel take no settings")
        folder = open_sweep(out)
        return _cancel(folder) if args.cancel else _show(folder, watch=args.watch)
    resources = read_resources(args)
    folder = SweepFolder(out)
    specs = _asked_for(args, overrides, folder)
    if args.dry_run:
        return _dry_run(folder, folder.add(specs), resources)
    cluster = choose_cluster(args.cluster)
    with folder.locked():
        folder = SweepFolder(out)  # as it is now that nobody else writes it
        specs = folder.add(specs)
        due = _due(folder, specs)
        folder.write()
        print(f"sweep    {folder.path}: {_counts(specs, due)}", flush=True)
        if due and cluster != "slurm":
            return _run_on_this_machine(folder, due, resources, cluster)
        if due:
            _submit(folder, due, resources)
    names = {spec.name for spec in specs}
    print(f"watch    longplay sweep --out {out} --status --watch")
    return _wait(folder, names) if args.wait else 0


def _asked_for(args: argparse.Namespace, overrides: list[str], folder: SweepFolder) -> list[SweepJobSpec]:
    """The runs that the command names; all of a sweep that is there if it names none."""
    named = overrides or args.grid or any(getattr(args, name) is not None for name in _GRID_OPTIONS)
    if folder.jobs and not named:
        return list(folder.jobs.values())
    data = args.data or prepared_datasets(Path("data"))
    if not data:
        raise ConfigError("--data: there is no prepared dataset in data/; make one with longplay prepare")
    grid = args.grid or "study"
    lengths = STUDY_LENGTHS if grid == "study" else ()
    return SweepGrid(
        grid=grid,
        recipes=tuple(split_words(args.models)) or MODELS,
        context_lengths=tuple(whole_numbers("--context-lengths", args.context_lengths)) or lengths,
        datasets=named_datasets(data),
        seeds=tuple(whole_numbers("--seeds", args.seeds)) or (0,),
        overrides=tuple(overrides),
        slots_per_step=args.slots_per_step,
    ).jobs()


def _due(folder: SweepFolder, specs: list[SweepJobSpec]) -> list[SweepJob]:
    """Jobs that are neither finished nor with a cluster."""
    names = {spec.name for spec in specs}
    return [
        folder.job(status.spec)
        for status in sweep_status(folder)
        if status.spec.name in names and status.state != "finished" and not status.live
    ]


def _counts(specs: Sequence[SweepJobSpec], due: Sequence[SweepJob]) -> str:
    rest = len(specs) - len(due)
    kept = f", {rest} finished or under way" if rest else ""
    return f"{len(specs)} runs{kept}, {len(due) or 'none'} to submit"


# ---------------------------------------------------------------------- submitting


def _submit(folder: SweepFolder, due: list[SweepJob], resources: Resources) -> None:
    submitted = submit_to_slurm(due, folder.submitit, resources, f"longplay-{folder.path.name}")
    for job, submission in zip(due, submitted, strict=True):
        folder.submissions[job.name] = submission
    folder.write()
    array = submitted[0].job_id.partition("_")[0]
    print(f"jobs     {len(due)} as array {array}; logs: {folder.submitit}/{array}_*_log.out")
    print(f"end      longplay sweep --out {folder.path} --cancel, or scancel {array}")


def _run_on_this_machine(
    folder: SweepFolder, due: list[SweepJob], resources: Resources, cluster: ClusterName
) -> int:
    if resources.nodes > 1:
        raise ConfigError(f"--nodes {resources.nodes}: --cluster {cluster} has one")
    if cluster == "debug":
        codes = {job.name: run_here(job, folder.submitit) for job in due}
        failed = [name for name, code in codes.items() if code]
        print(
            f"ended    {len(due) - len(failed)} finished, {len(failed)} not{': ' if failed else ''}", end=""
        )
        print(", ".join(failed), flush=True)
        return 1 if failed else 0

    def started(job: SweepJob, submission: Submission) -> None:
        folder.submissions[job.name] = submission
        folder.write()
        print(f"started  {job.name}: {folder.submitit}/{submission.job_id}_0_log.out", flush=True)

    def ended(job: SweepJob) -> None:
        status = next(each for each in sweep_status(folder) if each.spec.name == job.name)
        metric = "" if status.metric is None else f", best {status.metric:.4f} in validation"
        print(
            f"{status.state:<8} {job.name}{metric}{f': {status.error}' if status.error else ''}", flush=True
        )

    try:
        with terminable(), LocalQueue(folder.submitit, resources, started=started, ended=ended) as queue:
            queue.run(due)
    except KeyboardInterrupt:
        print(f"stopped; what ran has saved, and longplay sweep --out {folder.path} goes on", flush=True)
        return 130
    names = {job.name for job in due}
    return _verdict([status for status in sweep_status(folder) if status.spec.name in names])


def _dry_run(folder: SweepFolder, specs: list[SweepJobSpec], resources: Resources) -> int:
    from longplay.launch.estimates.memory_estimate import estimate
    from longplay.launch.estimates.workload import Workload, measure_workload

    device = "cuda" if resources.gpus_per_node else "cpu"
    datasets: dict[str, Dataset] = {}
    workloads: dict[Any, Workload] = {}  # models do not change the data's part, which takes long
    states = {status.spec.name: status.state for status in sweep_status(folder)}
    width = max(len(spec.name) for spec in specs)
    print(f"{'run':<{width}}  {'state':<9}  steps/epoch  steps at most  memory/rank")
    for spec in specs:
        config = spec.config
        if spec.data not in datasets:
            location = parse_location(spec.data)
            datasets[spec.data] = Dataset.open(location, on_bad_shard=config.data.on_bad_shard)
        key = (spec.data, config.data)
        if key not in workloads:
            workloads[key] = measure_workload(config, datasets[spec.data], world_size=resources.world_size)
        plan = estimate(config, workloads[key], world_size=resources.world_size, device_type=device)
        steps = plan.steps_per_epoch * config.train.max_epochs
        if config.train.max_steps is not None:
            steps = min(steps, config.train.max_steps)
        print(
            f"{spec.name:<{width}}  {states[spec.name]:<9}  {plan.steps_per_epoch:>11,}  {steps:>13,}  "
            f"{gib(plan.total_bytes):>11}"
        )
    print(
        f"{len(specs)} runs of {resources.world_size} rank(s) on {device}; nothing was submitted and "
        f"{folder.path} was left as it is"
    )
    return 0


# ---------------------------------------------------------------------- watching


def _show(folder: SweepFolder, *, watch: bool) -> int:
    live_view = watch and sys.stdout.isatty()
    try:
        while True:
            statuses = sweep_status(folder)
            clear = "\x1b[H\x1b[2J" if live_view else ""
            print(f"{clear}{as_table(statuses)}", flush=True)
            if not live_view or not any(status.live for status in statuses):
                return 0
            time.sleep(_REFRESH_S)
            folder = open_sweep(folder.path)
    except KeyboardInterrupt:
        return _go_on(folder)


def _wait(folder: SweepFolder, names: set[str]) -> int:
    """Until none of the jobs is live; says whenever their states change."""
    said = ""
    try:
        while True:
            statuses = [status for status in sweep_status(folder) if status.spec.name in names]
            if summary(statuses) != said:
                said = summary(statuses)
                print(said, flush=True)
            if not any(status.live for status in statuses):
                return _verdict(statuses)
            time.sleep(1.0)
    except KeyboardInterrupt:
        return _go_on(folder)


def _go_on(folder: SweepFolder) -> int:
    print(f"\nits jobs go on; longplay sweep --out {folder.path} --cancel ends them", flush=True)
    return 130


def _verdict(statuses: list[JobStatus]) -> int:
    failed = [status for status in statuses if status.state != "finished"]
    if failed:
        print(as_table(failed), flush=True)
    else:
        print(f"finished all {len(statuses)} runs", flush=True)
    return 1 if failed else 0


def _cancel(folder: SweepFolder) -> int:
    holder = folder.holder()
    live = [status for status in sweep_status(folder) if status.live]
    submissions = [folder.submissions[status.spec.name] for status in live]
    if holder is not None and any(each.cluster == "local" for each in submissions):
        os.kill(holder, signal.SIGTERM)  # it asks its jobs to save, and starts no more
    else:
        cancel(submissions, folder.submitit)
    print(f"cancelled {len(live)} jobs; longplay sweep --out {folder.path} goes on with them", flush=True)
    return 0


if __name__ == "__main__":
    from longplay.launch.cli import main

    sys.exit(main(["sweep", *sys.argv[1:]]))
