"""Builds and loads C++ sources of this package: by the compiler alone, once, into a cache; never required.

The library has a plain C interface and is loaded by ctypes, so the build needs neither Python's nor torch's
headers and takes seconds. Where CXX names no compiler, PyTorch is used instead. A build serves only the
source, flags, compiler and processor it was made for.
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

from torch import Tensor

_log = logging.getLogger(__name__)
_INCLUDE = Path(__file__).parent  # where vectors.h is
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
    """The library built from a C++ file; None, with one line in the log, where it cannot be
    built.

    Safe from several processes at once: each builds under a name of its own and renames.
    """
    compiler = shutil.which(os.environ.get("CXX", "c++"))
    if compiler is None:
        _log.info("%s: no C++ compiler found, using PyTorch instead", source.name)
        return None
    try:
        library = _cache_folder() / f"{source.stem}-{_identity(source, compiler)}.so"
        if not library.is_file():
            _build(source, library, compiler)
        return ctypes.CDLL(str(library))
    except (OSError, subprocess.SubprocessError) as error:
        reason = getattr(error, "stderr", None) or error
        _log.warning("%s: could not be built, using PyTorch instead: %s", source.name, reason)
        return None


def call_native(source: Path, function: str, sizes: ctypes.Structure, *tensors: Tensor) -> None:
    """Calls a function of a library that `load_native` gave: `sizes` by reference, then each tensor's first
    element.

    The interpreter's lock is released meanwhile.
    """
    library = load_native(source)
    assert library is not None
    pointers = [ctypes.c_void_p(tensor.data_ptr()) for tensor in tensors]
    getattr(library, function)(ctypes.byref(sizes), *pointers)


def _build(source: Path, library: Path, compiler: str) -> None:
    """Compiles `source` and renames the result to `library`."""
    started = time.perf_counter()
    library.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=library.parent, prefix="build-") as folder:
        built = Path(folder) / library.name
        command = [compiler, *_FLAGS, f"-I{_INCLUDE}", str(source), "-o", str(built)]
        subprocess.run(command, check=True, capture_output=True, text=True, timeout=_BUILD_LIMIT_S)
        built.replace(library)
    _log.info("%s: built in %.1f s, kept as %s", source.name, time.perf_counter() - started, library)


def _cache_folder() -> Path:
    base = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(base) / "longplay"


def _identity(source: Path, compiler: str) -> str:
    """A hash of all that the built code depends on."""
    version = subprocess.run(
        [compiler, "--version"], check=True, capture_output=True, text=True, timeout=60
    ).stdout
    headers = [header.read_text() for header in sorted(_INCLUDE.glob("*.h"))]
    machine = platform.system(), platform.machine(), _cpu_features()
    parts = [source.read_text(), *headers, version, *_FLAGS, *machine]
    return hashlib.sha256("|".join(parts).encode()).hexdigest()[:16]


def _cpu_features() -> str:
    """What -march=native reads, where the system tells: machines may share a home and not a processor."""
    cpuinfo = Path("/proc/cpuinfo")
    lines = cpuinfo.read_text().splitlines() if cpuinfo.is_file() else []
    return next((line for line in lines if line.startswith(("flags", "Features"))), "")
