"""Run tests in Triton's interpreter, with faster scans and reductions."""

import os
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest

_SKIPPING_FIXTURES = {"interpreted", "runs"}  # they skip a test unless kernels can run
_TESTS = Path(__file__).resolve().parents[1]
# Triton 3.6 converts an array of one element to a number, which NumPy 2.4 rejects.
_NUMPY_ERROR = "only 0-dimensional arrays can be converted to Python scalars"


def assert_tests_pass_in_the_interpreter(file: str, *options: str) -> None:
    """Run the tests of `file` by pytest with `options`, in a process with TRITON_INTERPRET=1.

    Every test of the file that is skipped elsewhere must run there. Skip if the installed Triton's
    interpreter does not run with the installed NumPy.
    """
    path = os.pathsep.join([str(_TESTS), *filter(None, [os.environ.get("PYTHONPATH")])])
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "-p", __name__, *options, file],
        capture_output=True,
        text=True,
        env=os.environ | {"TRITON_INTERPRET": "1", "PYTHONPATH": path},
        timeout=900,  # for a hang; interpreting takes a minute on a quiet machine
        check=False,
    )
    if _NUMPY_ERROR in done.stdout:
        pytest.skip(f"this release of Triton cannot interpret kernels with NumPy {np.__version__}")
    assert done.returncode == 0, done.stdout + done.stderr
    assert "passed" in done.stdout
    assert "skipped" not in done.stdout.splitlines()[-1], done.stdout


def pytest_deselected(items: Sequence[pytest.Item]) -> None:
    """Refuse options that leave out a test that runs only in the interpreter; a hook of pytest."""
    left_out = [item.nodeid for item in items if _needs_interpreter(item)]
    if left_out:
        raise pytest.UsageError(f"skipped here and elsewhere: {', '.join(left_out)}")


def _needs_interpreter(item: pytest.Item) -> bool:
    if item.get_closest_marker("gpu") is not None:
        return False
    fixtures = {name for mark in item.iter_markers("usefixtures") for name in mark.args}
    reasons = [str(mark.kwargs.get("reason")) for mark in item.iter_markers("skipif")]
    return bool(fixtures & _SKIPPING_FIXTURES) or any("TRITON_INTERPRET=1" in reason for reason in reasons)


def combine_slices() -> None:
    """Let the interpreter apply a combine function of arithmetic to NumPy slices, in the same order.

    The interpreter applies it to one element at a time otherwise. `tl.flip` contains a reduction.
    """
    from triton.runtime.interpreter import (  # pyright: ignore[reportMissingImports] -- optional
        ReduceOps,
        ScanOps,
    )

    ScanOps.generic_scan = _scan
    ReduceOps.generic_reduce = _reduce


def _scan(self: Any, input: tuple[Any, ...]) -> list[Any]:
    """Replace ScanOps.generic_scan."""
    return [
        self.to_tensor(np.stack(values, self.axis), tensor.dtype)
        for values, tensor in zip(zip(*_running(self, input), strict=True), input, strict=True)
    ]


def _reduce(self: Any, input: tuple[Any, ...]) -> list[Any]:
    """Replace ReduceOps.generic_reduce for a reduction of one axis."""
    last = _running(self, input)[-1]
    if self.keep_dims:
        last = tuple(np.expand_dims(value, self.axis) for value in last)
    return [self.to_tensor(value, tensor.dtype) for value, tensor in zip(last, input, strict=True)]


def _running(self: Any, input: tuple[Any, ...]) -> list[tuple[Any, ...]]:
    """Return the combination of the slices 0 to i along the axis, for each i."""
    arrays = [np.moveaxis(tensor.handle.data, self.axis, 0) for tensor in input]
    combined: list[tuple[Any, ...]] = []
    for slices in zip(*arrays, strict=True):
        value = self.combine_fn.fn(*combined[-1], *slices) if combined else slices
        combined.append(value if isinstance(value, tuple) else (value,))
    return combined
