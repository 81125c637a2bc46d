"""Settings and fixtures of all tests: one thread per process, a Slurm cluster on request."""

import os
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path
from typing import Any

os.environ.setdefault("OMP_NUM_THREADS", "1")

import hypothesis
import pytest
import torch
from local_cluster import ClusterConfig, LocalCluster, missing_requirement

from longplay.native.triton_runtime import can_run_triton

torch.set_num_threads(1)

# Tests that run in one worker, because they share a cluster or fixtures that take seconds.
GROUPS = (
    "tests/slurm/",
    "tests/cli/export/",
    "tests/cli/test_evaluate.py",
    "tests/cli/test_report.py",
    "tests/cli/test_stop.py",
    "tests/cli/test_string_ids.py",
    "tests/cli/test_train.py",
    "tests/cli/test_wrong_json.py",
    "tests/distributed/test_train_inputs.py",
    "tests/unit/launch/test_tensorboard_log.py",
    "tests/unit/models/test_compile.py",
)

# The same examples in every run, so that only a change of the code makes a test fail.
# HYPOTHESIS_PROFILE=search draws new examples.
hypothesis.settings.register_profile("repeat", derandomize=True, deadline=None)
hypothesis.settings.register_profile("search", deadline=None, print_blob=True)
hypothesis.settings.load_profile(os.environ.get("HYPOTHESIS_PROFILE", "repeat"))


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_auto_num_workers(config: pytest.Config) -> int:
    """Return the number of workers for `-n auto`: one per CPU, and one that mostly waits for Slurm."""
    return min(os.cpu_count() or 1, 4) + 1


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config: pytest.Config, log: Any) -> Any:
    """Give each test to the next free worker, but all tests of a group to the same worker."""
    if config.getoption("dist") != "load":
        return None
    from xdist.scheduler import LoadScopeScheduling

    class GroupScheduling(LoadScopeScheduling):
        def _split_scope(self, nodeid: str) -> str:
            return next((group for group in GROUPS if nodeid.startswith(group)), nodeid)

    config.option.loadscopereorder = False  # keep the order of the collection
    return GroupScheduling(config, log)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Run the tests on the Slurm cluster first, which mostly wait, then the slow tests."""
    items.sort(key=lambda item: (item.path.parent.name != "slurm", item.get_closest_marker("slow") is None))


def pytest_runtest_setup(item: pytest.Item) -> None:
    """Skip a test of Triton kernels where they cannot run; test_interpreter.py runs it in another process."""
    mark = item.get_closest_marker("kernels")
    device = "cuda" if torch.cuda.is_available() else "cpu"
    if mark is not None and not can_run_triton(mark.args[0] if mark.args else device):
        pytest.skip("needs Triton on a GPU or in its interpreter, where test_interpreter.py runs it")


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
