"""Settings and fixtures of all tests: one thread per process, a Slurm cluster on request."""

import os
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path

os.environ.setdefault("OMP_NUM_THREADS", "1")

import hypothesis
import pytest
import torch
from local_cluster import ClusterConfig, LocalCluster, missing_requirement

torch.set_num_threads(1)

# The same examples in every run, so that only a change of the code makes a test fail.
# HYPOTHESIS_PROFILE=search draws new examples.
hypothesis.settings.register_profile("repeat", derandomize=True, deadline=None)
hypothesis.settings.register_profile("search", deadline=None, print_blob=True)
hypothesis.settings.load_profile(os.environ.get("HYPOTHESIS_PROFILE", "repeat"))


def pytest_xdist_auto_num_workers(config: pytest.Config) -> int:
    """Return the number of workers for `-n auto`: one per CPU, and one that mostly waits for Slurm."""
    return min(os.cpu_count() or 1, 4) + 1


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Run the tests on the Slurm cluster first and in one worker, then the slow tests.

    The Slurm tests mostly wait; other workers run tests meanwhile.
    """
    for item in items:
        if item.path.parent.name == "slurm":
            item.add_marker(pytest.mark.xdist_group("slurm"))
    items.sort(key=lambda item: (item.path.parent.name != "slurm", item.get_closest_marker("slow") is None))


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """Print a table of the skipped tests: the reason, how many there are, and their files."""
    files: defaultdict[str, list[str]] = defaultdict(list)
    for report in terminalreporter.getreports("skipped"):
        reason = report.longrepr[2] if isinstance(report.longrepr, tuple) else str(report.longrepr)
        files[reason.removeprefix("Skipped: ")].append(report.nodeid.partition("::")[0])
    if not files:
        return
    terminalreporter.section("skipped tests by reason")
    terminalreporter.line(f"{'tests':>5}  reason")
    for reason in sorted(files, key=lambda reason: -len(files[reason])):
        terminalreporter.line(f"{len(files[reason]):>5}  {reason}")
        terminalreporter.line(f"{'':>5}    in {', '.join(sorted(set(files[reason])))}")
    terminalreporter.line(f"{sum(map(len, files.values())):>5}  in total")


@pytest.fixture(scope="session")
def slurm_cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[LocalCluster]:
    """Yield a cluster of two nodes with two fake GPUs each, which runs until the end of the session."""
    problem = missing_requirement()
    if problem:
        pytest.skip(problem)
    root: Path = tmp_path_factory.mktemp("slurm")
    with LocalCluster(root, ClusterConfig(gpus=2), bound=True) as cluster:
        yield cluster
