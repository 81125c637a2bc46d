"""Show the status of a sweep, wait for its jobs, and cancel them."""

import os
import signal
import sys
import time

from longplay.launch.console.exit_codes import EXIT_FAILED, EXIT_INTERRUPTED
from longplay.launch.sweeps.folder import SweepFolder, open_sweep
from longplay.launch.sweeps.queue_states import cancel
from longplay.launch.sweeps.status import JobStatus, print_status, summary, sweep_status

_REFRESH_S = 5.0
_POLL_S = 1.0


def show_status(folder: SweepFolder, *, watch: bool) -> int:
    """Print the status table; with `watch` on a terminal, refresh it until no job is live."""
    refresh = watch and sys.stdout.isatty()
    try:
        while True:
            statuses = sweep_status(folder)
            print("\x1b[H\x1b[2J" if refresh else "", end="")
            print_status(statuses)
            if not refresh or not any(status.live for status in statuses):
                return 0
            time.sleep(_REFRESH_S)
            folder = open_sweep(folder.path)
    except KeyboardInterrupt:
        return _interrupted(folder)


def wait_for_end(folder: SweepFolder, names: set[str]) -> int:
    """Wait until none of the named jobs is live, printing a line when states change; return the exit code."""
    printed = ""
    try:
        while True:
            statuses = [status for status in sweep_status(folder) if status.spec.name in names]
            if summary(statuses) != printed:
                printed = summary(statuses)
                print(printed, flush=True)
            if not any(status.live for status in statuses):
                return print_verdict(statuses)
            time.sleep(_POLL_S)
    except KeyboardInterrupt:
        return _interrupted(folder)


def print_verdict(statuses: list[JobStatus]) -> int:
    """Print the jobs that did not finish, or that all did; return the exit code."""
    failed = [status for status in statuses if status.state != "finished"]
    if failed:
        print_status(failed)
    else:
        print(f"finished all {len(statuses)} runs", flush=True)
    return EXIT_FAILED if failed else 0


def cancel_sweep(folder: SweepFolder) -> int:
    """Cancel the live jobs of a sweep; a run in training saves first."""
    holder = folder.holder()
    live = [status for status in sweep_status(folder) if status.live]
    submissions = [folder.submissions[status.spec.name] for status in live]
    if holder is not None and any(each.cluster == "local" for each in submissions):
        os.kill(holder, signal.SIGTERM)  # the sweep command stops its jobs, which save, and starts no others
    else:
        cancel(submissions, folder.submitit)
    print(f"canceled {len(live)} jobs; to resume them: longplay sweep --out {folder.path}", flush=True)
    return 0


def _interrupted(folder: SweepFolder) -> int:
    print(
        f"\nthe jobs continue; to cancel them: longplay sweep --out {folder.path} --cancel",
        flush=True,
    )
    return EXIT_INTERRUPTED
