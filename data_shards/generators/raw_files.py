"""Raw files of LFM-1b, KuaiRand-27K and MovieLens-1M, generated at any size in the originals' exact layouts.

For trying `prepare` at scale without the data. A file is written block by block: two threads generate blocks
ahead while earlier ones are written, so memory does not grow with the number of events. A block depends on
the seed, the sizes and its number alone: the same arguments give the same bytes.
"""

from __future__ import annotations

import contextlib
import errno
import itertools
import os
import shutil
from collections import deque
from collections.abc import Callable, Generator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from longplay.common.atomic import temporary_name
from longplay.data_shards.errors import DataError
from longplay.data_shards.generators.distributions import generator
from longplay.data_shards.generators.kuairand import kuairand_files
from longplay.data_shards.generators.layouts import (
    ML1M_LEAST_LENGTH,
    RawFile,
    lfm1b_files,
    ml1m_files,
)
from longplay.data_shards.progress import Progress, no_progress

_NUM_THREADS = 2
_MOST_ITEMS = 2_000_000_000
_MOST_USERS = 10_000_000


@dataclass(frozen=True, kw_only=True)
class RawFormat:
    """An original dataset: its size and how its files are generated.

    Attributes:
        events, items, users: of the original.
        least_length: events that every user has at least.
        files: (events, users, items, seed) -> the files.
    """

    events: int
    users: int
    items: int
    least_length: int
    files: Callable[..., list[RawFile]]


RAW_FORMATS = {
    "lfm1b": RawFormat(
        events=1_088_161_692, users=120_322, items=31_634_450, least_length=1, files=lfm1b_files
    ),
    "kuairand": RawFormat(
        events=322_278_385, users=27_285, items=32_038_725, least_length=1, files=kuairand_files
    ),
    "ml1m": RawFormat(
        events=1_000_209, users=6_040, items=3_952, least_length=ML1M_LEAST_LENGTH, files=ml1m_files
    ),
}


@dataclass(frozen=True, kw_only=True)
class RawSynthetic:
    """What to generate.

    Attributes:
        format: one of `RAW_FORMATS`.
        events: rows of the file, met exactly; for kuairand of the standard log's four files together.
        users: how many; None keeps the original's mean length.
        items: size of the catalogue, not all of which need to occur; None takes the original's.
    """

    format: str
    events: int
    users: int | None = None
    items: int | None = None
    seed: int = 0

    def __post_init__(self) -> None:
        least = RAW_FORMATS[self.format].least_length
        for name, value, low, high in (
            ("seed", self.seed, 0, None),
            ("events", self.events, least, None),
            ("items", self.num_items, 1, _MOST_ITEMS),
            ("users", self.num_users, 1, min(_MOST_USERS, self.events // least)),
        ):
            if value < low:
                raise DataError(f"--{name} is {value}, it must be at least {low}")
            if high is not None and value > high:
                why = f" with --events {self.events}" if name == "users" else ""
                raise DataError(f"--{name} is {value}{why}, it must be at most {high}")
        if self.format == "ml1m" and self.events > self.num_users * self.num_items:
            raise DataError(
                f"--events is {self.events}, more than {self.num_users} users can rate of {self.num_items} "
                f"movies once each; pass at most {self.num_users * self.num_items} or more --users or --items"
            )

    @property
    def num_users(self) -> int:
        original = RAW_FORMATS[self.format]
        scaled = round(self.events * original.users / original.events)
        return max(1, scaled) if self.users is None else self.users

    @property
    def num_items(self) -> int:
        return RAW_FORMATS[self.format].items if self.items is None else self.items

    @cached_property
    def files(self) -> list[RawFile]:
        """The files, with their numbers of rows; drawing the users' lengths is all that this takes."""
        return RAW_FORMATS[self.format].files(
            events=self.events, users=self.num_users, items=self.num_items, seed=self.seed
        )

    def estimated_bytes(self) -> int:
        """Size of all files together, from the first block's bytes per row."""
        first = next(file for file in self.files if file.num_rows)
        row_bytes = len(first.text(0, _block_generator(self.seed, 0))) / int(first.bounds[1])
        return sum(len(file.header) + int(file.num_rows * row_bytes) for file in self.files)


def check_raw_output(raw: RawSynthetic, out: Path, *, overwrite: bool) -> None:
    """Refuses an output folder in which the files cannot be written, before any work is done.

    Raises:
        DataError: `out` is no folder, holds one of the files and `overwrite` is off, or has too little space.
    """
    standing = next((path for path in (out, *out.parents) if path.exists()), Path())
    if not standing.is_dir():
        raise DataError(f"{standing}: a file, not a folder; pass another --out")
    for file in raw.files:
        path = out / file.path
        if path.is_dir():
            raise DataError(f"{path}: a folder is there; pass another --out")
        if path.exists() and not overwrite:
            raise DataError(f"{path}: is there already; pass --overwrite to replace it, or another --out")
    needed, free = raw.estimated_bytes(), shutil.disk_usage(standing).free
    if needed > free:
        raise DataError(
            f"{out}: about {needed / 1e9:,.1f} GB are needed and {free / 1e9:,.1f} GB are free there; "
            f"pass another --out or fewer --events"
        )


def write_raw(
    raw: RawSynthetic, out: Path, *, overwrite: bool = False, progress: Progress = no_progress
) -> list[Path]:
    """Writes the files of `raw` under `out` and returns their paths, in the order of `raw.files`.

    Each is written beside its place under a hidden name, and all are renamed when all are whole. On any
    exception what was written is removed.

    Args:
        progress: called with ("writing", rows written, rows in all) after each block.

    Raises:
        DataError: as `check_raw_output`; the disk fills up.
    """
    check_raw_output(raw, out, overwrite=overwrite)
    paths = [out / file.path for file in raw.files]
    partial = [temporary_name(path) for path in paths]
    total = sum(file.num_rows for file in raw.files)
    done = 0
    try:
        with contextlib.closing(_texts(raw)) as texts:
            for file, path in zip(raw.files, partial, strict=True):
                path.parent.mkdir(parents=True, exist_ok=True)
                with path.open("wb", buffering=0) as handle:
                    _write_all(handle, file.header)
                    for rows in (file.bounds[1:] - file.bounds[:-1]).tolist():
                        _write_all(handle, next(texts))
                        done += rows
                        progress("writing", done, total)
        for path, whole in zip(partial, paths, strict=True):
            path.replace(whole)
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            raise DataError(
                f"{out}: the disk is full after {done:,} of {total:,} rows; what was written is removed; "
                f"free about {raw.estimated_bytes() / 1e9:,.1f} GB, or pass another --out or fewer --events"
            ) from error
        raise
    finally:
        for path in partial:
            path.unlink(missing_ok=True)
    return paths


def _block_generator(seed: int, number: int) -> Any:
    return generator(seed, 1, number)


def _texts(raw: RawSynthetic) -> Generator[bytes, None, None]:
    """The text of every block of every file in order, a few blocks ahead of the reader."""
    blocks = ((file, block) for file in raw.files for block in range(file.num_blocks))
    jobs = (
        (file.text, block, _block_generator(raw.seed, number)) for number, (file, block) in enumerate(blocks)
    )
    ahead: deque[Future[bytes]] = deque()
    with ThreadPoolExecutor(_NUM_THREADS) as pool:
        try:
            ahead.extend(pool.submit(*job) for job in itertools.islice(jobs, _NUM_THREADS + 1))
            while ahead:
                text = ahead.popleft().result()
                ahead.extend(pool.submit(*job) for job in itertools.islice(jobs, 1))
                yield text
        finally:
            pool.shutdown(wait=False, cancel_futures=True)


def _write_all(handle: Any, text: bytes) -> None:
    """Writes all of `text`: one call may take a part only, and 2 GiB at most."""
    rest = memoryview(text)
    while rest:
        rest = rest[os.write(handle.fileno(), rest) :]
