"""Compile the C++ sources of this package at first use and load them. Without a compiler, PyTorch is used.

A library has a plain C interface and is loaded by ctypes, so that the build needs no headers of Python or
torch and takes seconds. Libraries are cached per source, flags, compiler and CPU. The environment variable
CXX selects the compiler.
"""

import ctypes
import hashlib
import logging
import os
import platform
import shutil
import subprocess
import tempfile
import time
from functools import cache
from pathlib import Path

import numpy as np
from torch import Tensor

_log = logging.getLogger(__name__)
_INCLUDE = Path(__file__).parent  # the folder of vectors.h
_FLAGS = (
    "-std=c++17",
    "-O3",
    "-march=native",
    "-fopenmp",
    "-ffp-contract=fast",
    "-fno-math-errno",
    "-shared",
    "-fPIC",
)
_BUILD_LIMIT_S = 300


@cache
def load_native(source: Path) -> ctypes.CDLL | None:
    """Return the library built from a C++ file, or log the reason and return None if it cannot be built.

    Several processes may build at once: each writes to its own temporary folder and renames the result.
    """
    compiler = shutil.which(os.environ.get("CXX", "c++"))
    if compiler is None:
        _log.info("%s: no C++ compiler found; using PyTorch", source.name)
        return None
    try:
        library = _cache_folder() / f"{source.stem}-{_identity(source, compiler)}.so"
        if not library.is_file():
            _build(source, library, compiler)
        return ctypes.CDLL(str(library))
    except (OSError, subprocess.SubprocessError) as error:
        reason = getattr(error, "stderr", None) or error
        _log.warning("%s: build failed; using PyTorch: %s", source.name, reason)
        return None


def call_native(source: Path, function: str, sizes: ctypes.Structure, *arrays: Tensor | np.ndarray) -> None:
    """Call a C function of the library built from `source`. The GIL is released during the call.

    Args:
        source: a C++ file that `load_native` can build.
        function: name of the function.
        sizes: passed by reference as the first argument.
        arrays: contiguous CPU tensors or arrays; the function gets a pointer to the first element of each.
    """
    library = load_native(source)
    assert library is not None
    addresses = (array.data_ptr() if isinstance(array, Tensor) else array.ctypes.data for array in arrays)
    getattr(library, function)(ctypes.byref(sizes), *map(ctypes.c_void_p, addresses))


def _build(source: Path, library: Path, compiler: str) -> None:
    """Compile `source` and rename the result to `library`."""
    started = time.perf_counter()
    library.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=library.parent, prefix="build-") as folder:
        built = Path(folder) / library.name
        command = [compiler, *_FLAGS, f"-I{_INCLUDE}", str(source), "-o", str(built)]
        subprocess.run(command, check=True, capture_output=True, text=True, timeout=_BUILD_LIMIT_S)
        built.replace(library)
    _log.info("%s: built in %.1f s, cached as %s", source.name, time.perf_counter() - started, library)


def _cache_folder() -> Path:
    """Return the folder of built libraries.

    Raises:
        OSError: the user has no home folder, as in some containers, and XDG_CACHE_HOME is not set.
    """
    base = os.environ.get("XDG_CACHE_HOME") or os.path.expanduser("~/.cache")
    if base.startswith("~"):
        raise OSError("no home folder for the cache; set XDG_CACHE_HOME")
    return Path(base) / "longplay"


def _identity(source: Path, compiler: str) -> str:
    """Return a hash of everything that the compiled code depends on."""
    version = subprocess.run(
        [compiler, "--version"], check=True, capture_output=True, text=True, timeout=60
    ).stdout
    headers = [header.read_text() for header in sorted(_INCLUDE.glob("*.h"))]
    machine = platform.system(), platform.machine(), _cpu_features()
    parts = [source.read_text(), *headers, version, *_FLAGS, *machine]
    return hashlib.sha256("|".join(parts).encode()).hexdigest()[:16]


def _cpu_features() -> str:
    """Return the CPU feature flags that -march=native depends on; hosts may share a cache."""
    cpuinfo = Path("/proc/cpuinfo")
    lines = cpuinfo.read_text().splitlines() if cpuinfo.is_file() else []
    return next((line for line in lines if line.startswith(("flags", "Features"))), "")
