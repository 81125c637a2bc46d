"""What every test shares: one thread per process, no accelerator, and a Slurm cluster for those that ask."""

import os
from collections.abc import Iterator
from pathlib import Path

os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("DS_ACCELERATOR", "cpu")

import hypothesis
import pytest
import torch
from local_cluster import ClusterConfig, LocalCluster, why_not

torch.set_num_threads(1)

# The same examples every time, so that a change is what turns a test red; `HYPOTHESIS_PROFILE=search` looks
# for new ones.
hypothesis.settings.register_profile("repeat", derandomize=True, deadline=None)
hypothesis.settings.register_profile("search", deadline=None, print_blob=True)
hypothesis.settings.load_profile(os.environ.get("HYPOTHESIS_PROFILE", "repeat"))


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Begins with the tests on the Slurm cluster: they wait a lot, and under `pytest -n` others fill in."""
    items.sort(key=lambda item: not item.path.parent.name == "slurm")


@pytest.fixture(scope="session")
def slurm_cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[LocalCluster]:
    """Two nodes with two GPUs each, fake ones; up when the first test asks, down with the session."""
    problem = why_not()
    if problem:
        pytest.skip(problem)
    root: Path = tmp_path_factory.mktemp("slurm")
    with LocalCluster(root, ClusterConfig(gpus=2), bound=True) as cluster:
        yield cluster
