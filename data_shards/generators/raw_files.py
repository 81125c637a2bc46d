"""Write raw files of any size in the exact layouts of LFM-1b, KuaiRand-27K and MovieLens-1M.

They are used to test `prepare` at scale without the original data. Two threads generate blocks while earlier
blocks are written, so memory does not grow with the number of events. A block depends only on the seed, the
sizes and its number: equal arguments give equal bytes.
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
from longplay.data_shards.generators.distributions import keyed_generator
from longplay.data_shards.generators.kuairand import kuairand_files
from longplay.data_shards.generators.layouts import (
    ML1M_MIN_LENGTH,
    RawFile,
    lfm1b_files,
    ml1m_files,
)
from longplay.data_shards.progress import Progress, no_progress

NUM_THREADS = 2
_MAX_ITEMS = 2_000_000_000
_MAX_USERS = 10_000_000


@dataclass(frozen=True, kw_only=True)
class RawFormat:
    """An original dataset: its size and the generator of its files.

    Attributes:
        events, users, items: size of the original.
        min_length: minimum number of events of a user.
        files: (events, users, items, seed) -> the files.
    """

    events: int
    users: int
    items: int
    min_length: int
    files: Callable[..., list[RawFile]]


RAW_FORMATS = {
    "lfm1b": RawFormat(
        events=1_088_161_692, users=120_322, items=31_634_450, min_length=1, files=lfm1b_files
    ),
    "kuairand": RawFormat(
        events=322_278_385, users=27_285, items=32_038_725, min_length=1, files=kuairand_files
    ),
    "ml1m": RawFormat(
        events=1_000_209, users=6_040, items=3_952, min_length=ML1M_MIN_LENGTH, files=ml1m_files
    ),
}


@dataclass(frozen=True, kw_only=True)
class RawSynthetic:
    """The files to generate.

    Attributes:
        format: one of `RAW_FORMATS`.
        events: exact number of rows; for kuairand, of the four files of the standard log in total.
        users: number of users; None keeps the mean history length of the original.
        items: size of the catalog; some of its items may not occur. None: the size of the original.
        seed: seed of the generator.
    """

    format: str
    events: int
    users: int | None = None
    items: int | None = None
    seed: int = 0

    def __post_init__(self) -> None:
        min_events = RAW_FORMATS[self.format].min_length
        for name, value, low, high in (
            ("seed", self.seed, 0, None),
            ("events", self.events, min_events, None),
            ("items", self.num_items, 1, _MAX_ITEMS),
            ("users", self.num_users, 1, min(_MAX_USERS, self.events // min_events)),
        ):
            if value < low:
                raise DataError(f"--{name} is {value}, but must be at least {low}")
            if high is not None and value > high:
                why = f" with --events {self.events}" if name == "users" else ""
                raise DataError(f"--{name} is {value}{why}, but must be at most {high}")
        if self.format == "ml1m" and self.events > self.num_users * self.num_items:
            most = self.num_users * self.num_items
            raise DataError(
                f"--events is {self.events}, more than {self.num_users} users can rate {self.num_items} "
                f"movies once each; lower --events to {most} or raise --users or --items"
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
        """The files to write. The first access draws the history lengths but generates no rows."""
        return RAW_FORMATS[self.format].files(
            events=self.events, users=self.num_users, items=self.num_items, seed=self.seed
        )

    def estimated_bytes(self) -> int:
        """Estimate the total size of the files from the bytes per row of the first block."""
        first = next(file for file in self.files if file.num_rows)
        row_bytes = len(first.text(0, _block_generator(self.seed, 0))) / int(first.bounds[1])
        return sum(len(file.header) + int(file.num_rows * row_bytes) for file in self.files)


def check_raw_output(raw: RawSynthetic, out: Path, *, overwrite: bool) -> None:
    """Check that the files can be written to `out`, before any is generated.

    Raises:
        DataError: `out` is not a folder, contains one of the files and `overwrite` is off, or has too little
            free space.
    """
    existing = next((path for path in (out, *out.parents) if path.exists()), Path())
    if not existing.is_dir():
        raise DataError(f"{existing}: is a file, not a folder; pass another --out")
    for file in raw.files:
        path = out / file.path
        if path.is_dir():
            raise DataError(f"{path}: is a folder; pass another --out")
        if path.exists() and not overwrite:
            raise DataError(f"{path}: already exists; pass --overwrite to replace it, or another --out")
    needed, free = raw.estimated_bytes(), shutil.disk_usage(existing).free
    if needed > free:
        raise DataError(
            f"{out}: needs about {needed / 1e9:,.1f} GB, but only {free / 1e9:,.1f} GB are free; "
            "pass another --out or fewer --events"
        )


def write_raw(
    raw: RawSynthetic, out: Path, *, overwrite: bool = False, progress: Progress = no_progress
) -> list[Path]:
    """Write the files of `raw` into `out` and return their paths, in the order of `raw.files`.

    The files are written under temporary names and renamed when all are complete. On any exception the
    temporary files are removed.

    Args:
        raw: the files to generate.
        out: the folder.
        overwrite: replace existing files.
        progress: called with ("writing", rows written, total rows) after each block.

    Raises:
        DataError: `check_raw_output` fails, or the disk is full.
    """
    check_raw_output(raw, out, overwrite=overwrite)
    paths = [out / file.path for file in raw.files]
    partial = [temporary_name(path) for path in paths]
    total = sum(file.num_rows for file in raw.files)
    done = 0
    try:
        with contextlib.closing(_block_texts(raw)) as texts:
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
                f"{out}: the disk is full after {done:,} of {total:,} rows; the partial files were removed; "
                f"free about {raw.estimated_bytes() / 1e9:,.1f} GB, or pass another --out or fewer --events"
            ) from error
        raise
    finally:
        for path in partial:
            path.unlink(missing_ok=True)
    return paths


def _block_generator(seed: int, number: int) -> Any:
    return keyed_generator(seed, 1, number)


def _block_texts(raw: RawSynthetic) -> Generator[bytes, None, None]:
    """Yield the text of every block of every file in order. Threads generate a few blocks ahead."""
    blocks = ((file, block) for file in raw.files for block in range(file.num_blocks))
    jobs = (
        (file.text, block, _block_generator(raw.seed, number)) for number, (file, block) in enumerate(blocks)
    )
    ahead: deque[Future[bytes]] = deque()
    with ThreadPoolExecutor(NUM_THREADS) as pool:
        try:
            ahead.extend(pool.submit(*job) for job in itertools.islice(jobs, NUM_THREADS + 1))
            while ahead:
                text = ahead.popleft().result()
                ahead.extend(pool.submit(*job) for job in itertools.islice(jobs, 1))
                yield text
        finally:
            pool.shutdown(wait=False, cancel_futures=True)


def _write_all(handle: Any, text: bytes) -> None:
    """Write all of `text`. One call of `os.write` may write only a part, and at most 2 GiB."""
    rest = memoryview(text)
    while rest:
        rest = rest[os.write(handle.fileno(), rest) :]
