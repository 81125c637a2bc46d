"""Find the input files that a command names, as files, folders or patterns, and report read errors."""

from __future__ import annotations

import glob
import itertools
import os
import re
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from urllib.parse import unquote

import pyarrow as pa

from longplay.data_shards.errors import DataError

COMPRESSED_SUFFIXES = (".gz", ".bz2", ".zst", ".xz")
_COPY = re.compile(r"(\.(bak|old|orig|copy)|~)$|( \(\d+\)| copy)(?=(\.\w+)*$)", re.IGNORECASE)
_HIVE_NULL = "__HIVE_DEFAULT_PARTITION__"
_NUMBERED = re.compile(r"\.\d+$")


def without_compression(name: str) -> str:
    """Return a file name without the suffix of its compression."""
    for suffix in COMPRESSED_SUFFIXES:
        name = name.removesuffix(suffix)
    return name


def find_files(paths: Iterable[Path], suffixes: Sequence[str]) -> tuple[Path, ...]:
    """Return the files that paths name, in the order of the paths. A file that does not exist is kept.

    Args:
        paths: files, folders and patterns such as `logs/*.csv`. The files of a folder or pattern are sorted
            by path. Below a folder, names that start with `.` or `_` and empty files are left out.
        suffixes: only these files of a folder are read, with or without a suffix of compression.

    Raises:
        DataError: a folder or pattern has no files, or a file occurs twice or together with a copy of itself.
    """
    files: list[Path] = []
    for path in paths:
        if path.is_dir():
            files_below = (file for file in sorted(path.rglob("*")) if file.is_file())
            found = [
                file
                for file in files_below
                if _is_data(file.relative_to(path))
                and without_compression(file.name).lower().endswith(tuple(suffixes))
            ]
            found = [file for file in found if file.stat().st_size] or found  # Spark writes empty parts
            if not found:
                raise DataError(
                    f"{path}: is a folder without files {', '.join(f'*{suffix}' for suffix in suffixes)}; "
                    "pass the files to read"
                )
            files += found
        elif not path.exists() and glob.has_magic(str(path)):
            found = [Path(name) for name in sorted(glob.glob(str(path), recursive=True))]
            if not (found := [file for file in found if file.is_file()]):
                raise DataError(f"{path}: no file matches; check the pattern")
            files += found
        else:
            files.append(path)
    check_copies(files)
    return tuple(files)


def check_copies(files: Iterable[Path]) -> None:
    """Check that no file occurs twice, compressed and plain, or with a copy such as `events.csv.bak`.

    Raises:
        DataError: two files hold the same data, judged by their names; the message names both.
    """
    seen: dict[Path, Path] = {}
    files = list(files)
    plain = {_without_marks(_real(file)) for file in files}
    for file in files:
        origin = _without_marks(_real(file))
        unnumbered = origin.with_name(_NUMBERED.sub("", origin.name) or origin.name)
        if unnumbered in plain:  # events.csv.1 is then a copy; without events.csv, .1 and .2 are parts
            origin = unnumbered
        if origin in seen:
            raise DataError(
                f"{file}: holds the same data as {seen[origin]}, judged by its name; pass only one of them"
            )
        seen[origin] = file


def _real(path: Path) -> Path:
    """Return the absolute path without symbolic links. Path.resolve fails for links that form a loop."""
    return Path(os.path.realpath(path))


def _without_marks(path: Path) -> Path:
    """Return a path without marks of a copy, such as `.bak` or ` (1)`, and suffixes of compression."""
    for _ in range(3):
        path = path.with_name(_COPY.sub("", without_compression(path.name)) or path.name)
    return path


def folder_columns(path: Path) -> dict[str, str | None]:
    """Return the columns that folders called `name=value` give a file, as Hive and Spark write them."""
    names = itertools.takewhile(lambda name: "=" in name, (folder.name for folder in _real(path).parents))
    pairs = [name.partition("=") for name in reversed(list(names))]
    return {unquote(key): None if value == _HIVE_NULL else unquote(value) for key, _, value in pairs}


def file_identity(path: Path) -> list[Any]:
    """Return the path, size and modification time of a file, which change when it is replaced.

    Raises:
        DataError: the file does not exist or cannot be read.
    """
    try:
        stat = path.stat()
    except FileNotFoundError:
        raise DataError(f"{path}: no such file; check the path") from None
    except OSError as error:
        raise DataError(f"{path}: cannot be read ({error.strerror}); check its permissions") from error
    return [str(_real(path)), stat.st_size, stat.st_mtime_ns]


@contextmanager
def reading(path: Path, kind: str, remedy: str = "check that it is complete") -> Iterator[None]:
    """Turn an error while reading a file into a `DataError` of one line.

    Args:
        path: the file.
        kind: what it is read as, such as `text`.
        remedy: end of the message, which tells the user what to do.

    Raises:
        DataError: the file cannot be read.
    """
    if path.is_dir():
        raise DataError(f"{path}: is a folder; give the path of the file to read")
    try:
        yield
    except FileNotFoundError:
        raise DataError(f"{path}: no such file; check the path") from None
    except (OSError, EOFError, pa.ArrowException, *_archive_errors()) as error:
        cause = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        if "too much memory" in cause:
            cause, remedy = "its zstd window is too large", f"repack it with `zstd -d --long=31 {path}`"
        raise DataError(f"{path}: cannot be read as {kind} ({cause}); {remedy}") from error


def _archive_errors() -> tuple[type[Exception], ...]:
    import lzma
    import tarfile
    import zipfile
    import zlib

    # zipfile raises NotImplementedError for a compression method that it cannot read.
    return (lzma.LZMAError, tarfile.TarError, zipfile.BadZipFile, zlib.error, NotImplementedError)


def _is_data(path: Path) -> bool:
    """Return whether no part of a relative path is hidden or is a marker such as `_SUCCESS`."""
    return not any(part.startswith((".", "_")) for part in path.parts)
