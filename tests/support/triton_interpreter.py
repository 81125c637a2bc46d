"""A plugin of pytest for a process with TRITON_INTERPRET=1: faster scans and reductions."""

from typing import Any

import numpy as np


def pytest_configure() -> None:
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
