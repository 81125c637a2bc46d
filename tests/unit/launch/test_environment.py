"""Tests of the environment variables that the commands set before torch is loaded."""

import os
import subprocess
import sys

import pytest

_PRINT = "import sys, longplay.launch, os; print(os.environ.get('OMP_WAIT_POLICY'), 'torch' in sys.modules)"


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        ({}, "passive"),
        ({"OMP_WAIT_POLICY": "active"}, "active"),
        ({"GOMP_SPINCOUNT": "1000"}, "None"),
    ],
)
def test_waiting_threads_sleep_unless_the_user_chose_otherwise(given: dict[str, str], expected: str) -> None:
    kept = {
        name: value for name, value in os.environ.items() if name not in ("OMP_WAIT_POLICY", "GOMP_SPINCOUNT")
    }
    done = subprocess.run([sys.executable, "-c", _PRINT], env=kept | given, capture_output=True, text=True)
    assert done.stdout.split() == [expected, "False"], done.stderr
