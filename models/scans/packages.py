"""The optional packages of CUDA kernels, mamba-ssm and causal-conv1d, and which backends need them."""

import importlib
import os
from dataclasses import dataclass
from functools import cache
from typing import Any, get_args

from longplay.models.base.config import ScanName

_VARIABLE = "LONGPLAY_SCAN"
_WITHOUT_PACKAGES = ("chunk", "cpp", "ref")


def requested_backend(scan: ScanName) -> ScanName:
    """Return the environment variable LONGPLAY_SCAN if `scan` is "auto" and the variable is set, else `scan`.

    Raises:
        ValueError: the variable is not the name of a backend.
    """
    name = os.environ.get(_VARIABLE, "auto")
    if scan != "auto" or name == "auto":
        return scan
    for known in get_args(ScanName):
        if name == known:
            return known
    raise ValueError(f"{_VARIABLE}={name!r}: must be one of {', '.join(get_args(ScanName))}")


def uses_packages(scan: ScanName) -> bool:
    """Return whether a mixer with this backend uses kernels of the packages on CUDA."""
    return requested_backend(scan) not in _WITHOUT_PACKAGES


def require_no_atomics(backend: ScanName) -> None:
    """Check that a backend's gradients repeat bitwise on CUDA.

    Raises:
        ValueError: the backend is "kernel".
    """
    if backend == "kernel":
        raise ValueError(
            "train.deterministic: encoder.scan_backend kernel does not repeat on a GPU, because mamba-ssm's "
            "selective_scan_fn and older releases of causal-conv1d add gradients by atomic operations, in an "
            "order that varies; use --encoder.scan_backend auto, or chunk without Triton"
        )


@dataclass(frozen=True)
class PackageFunction:
    """A function of an optional package.

    Attributes:
        package: the package's name for pip.
        module: the module that holds the function.
        name: the function's name.
    """

    package: str
    module: str
    name: str

    def find(self) -> Any | None:
        """Return the function, or None if it cannot be imported."""
        return _find(self.module, self.name)[0]

    def require(self) -> Any:
        """Return the function.

        Raises:
            ValueError: it cannot be imported.
        """
        function, problem = _find(self.module, self.name)
        if function is None:
            raise ValueError(
                f"encoder.scan_backend: needs {self.package} on a GPU, which {problem}; install it with "
                "`pip install 'longplay[cuda]'`, or use slower PyTorch code: --encoder.scan_backend chunk, "
                f"or {_VARIABLE}=chunk in the environment"
            )
        return function


@cache
def _find(module: str, name: str) -> tuple[Any | None, str]:
    """Return a function, or None and why it cannot be imported."""
    try:
        return getattr(importlib.import_module(module), name), ""
    except Exception as error:  # a package that was built for another PyTorch may raise anything
        if isinstance(error, ModuleNotFoundError) and error.name == module.partition(".")[0]:
            return None, "is not installed"
        return None, f"is installed but cannot be imported ({type(error).__name__}: {error})"
