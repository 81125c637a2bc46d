"""Run the tests marked `kernels` in Triton's interpreter, on the CPU."""

import importlib.util
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

TESTS = Path(__file__).resolve().parents[2]
FILES = {path for path in TESTS.rglob("test_*.py") if "pytest.mark.kernels" in path.read_text()}
FILES -= {Path(__file__).resolve()}
# Triton 3.6 converts an array of one element to a number, which NumPy 2.4 rejects.
NUMPY_ERROR = "only 0-dimensional arrays can be converted to Python scalars"


@pytest.mark.slow
@pytest.mark.skipif(importlib.util.find_spec("triton") is None, reason="needs triton")
@pytest.mark.parametrize("folder", sorted({path.parent.relative_to(TESTS) for path in FILES}), ids=str)
def test_the_kernels_are_correct_in_the_interpreter(folder: Path) -> None:
    """Triton reads TRITON_INTERPRET when it is imported, hence a process of its own."""
    files = sorted(str(path) for path in FILES if path.parent == TESTS / folder)
    environment = os.environ | {
        "TRITON_INTERPRET": "1",
        "CUDA_VISIBLE_DEVICES": "",
        "MAMBA_DETERMINISTIC": "1",  # mamba-ssm's autotuning needs a GPU
        "PYTHONPATH": os.pathsep.join([str(TESTS), *filter(None, [os.environ.get("PYTHONPATH")])]),
    }
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider"]
    command += ["-p", "support.triton_interpreter", "-m", "kernels and not gpu", *files]
    done = subprocess.run(
        command,
        capture_output=True,
        text=True,
        env=environment,
        timeout=900,  # for a hang; it takes a minute on a quiet machine
        check=False,
    )
    if NUMPY_ERROR in done.stdout:
        pytest.skip(f"this release of Triton cannot interpret kernels with NumPy {np.__version__}")
    assert done.returncode == 0, done.stdout + done.stderr
    assert "needs Triton" not in done.stdout, done.stdout
