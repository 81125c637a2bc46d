"""Tar shard -> flat arrays, read by WebDataset and checked against the manifest."""

from __future__ import annotations

import functools
import io
import tarfile
import threading
from collections import OrderedDict
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from webdataset.gopen import gopen
from webdataset.tariterators import group_by_keys, tar_file_expander

from longplay.data_shards.errors import DataError
from longplay.data_shards.shard_layout import ITEMS_SUFFIX, TIMES_SUFFIX, sample_key

_WAY_OUT = "restore the file or prepare the dataset again"


@dataclass(frozen=True)
class DecodedShard:
    """The sequences of one shard, one after the other.

    Attributes:
        items: (events,) int32 item ids.
        times: (events,) int64.
        ptr: (users + 1,) int64, where each user's events begin.
    """

    items: np.ndarray
    times: np.ndarray
    ptr: np.ndarray

    @property
    def num_bytes(self) -> int:
        """Memory it takes."""
        return self.items.nbytes + self.times.nbytes + self.ptr.nbytes


def read_shard(path: Path, first_user: int, lengths: np.ndarray, num_items: int) -> DecodedShard:
    """Reads one whole shard, sequentially.

    Args:
        first_user: index of the user of its first sample.
        lengths: (users,) events of each of its users, in order.
        num_items: the largest item id there may be.

    Raises:
        DataError: missing, truncated or damaged, or not what the dataset's tables say; names the shard.
    """
    ptr = np.concatenate([[0], np.cumsum(lengths)]).astype(np.int64)
    items, times = np.empty(ptr[-1], np.int32), np.empty(ptr[-1], np.int64)
    num_read = 0
    try:
        for sample in _samples(path):
            if num_read == len(lengths):
                raise ValueError(f"more than the {len(lengths)} users it should hold")
            if sample["__key__"] != sample_key(first_user + num_read):
                raise ValueError(
                    f"sample {sample['__key__']} where {sample_key(first_user + num_read)} should be"
                )
            begin, end = ptr[num_read], ptr[num_read + 1]
            items[begin:end] = _decode(sample, ITEMS_SUFFIX, np.int32, end - begin)
            times[begin:end] = _decode(sample, TIMES_SUFFIX, np.int64, end - begin)
            num_read += 1
        if num_read != len(lengths):
            raise ValueError(f"{num_read} users, {len(lengths)} expected")
        if len(items) and not (items.min() >= 1 and items.max() <= num_items):
            raise ValueError(f"item ids outside 1..{num_items}")
    except FileNotFoundError:
        raise DataError(f"{path}: shard is missing; {_WAY_OUT}") from None
    except (OSError, ValueError, EOFError, tarfile.TarError) as error:
        cause = (str(error) or type(error).__name__).splitlines()[0]
        raise DataError(f"{path}: shard is damaged ({cause}); {_WAY_OUT}") from error
    return DecodedShard(items, times, ptr)


def _samples(path: Path) -> Iterator[dict[str, Any]]:
    """WebDataset's samples of one tar, in file order."""
    stream: Any = gopen(str(path), mode="rb")
    with stream:
        source = {"url": str(path), "stream": stream}
        yield from group_by_keys(tar_file_expander([source]))


def _decode(sample: dict[str, Any], suffix: str, dtype: type, length: int) -> np.ndarray:
    """One array of a sample, checked; never unpickles."""
    if suffix not in sample:
        raise ValueError(f"sample {sample['__key__']} has no {suffix}")
    content = sample[suffix]
    begin = 10 + int.from_bytes(content[8:10], "little")
    found, shape = _parse_header(content[:begin])
    if found != dtype or shape != (length,):
        raise ValueError(
            f"{sample['__key__']}.{suffix} holds {found} {shape}, {np.dtype(dtype)} ({length},) expected"
        )
    return np.frombuffer(content, found, offset=begin)


@functools.lru_cache(maxsize=1 << 16)
def _parse_header(header: bytes) -> tuple[np.dtype, tuple[int, ...]]:
    """Type and shape in the header of a .npy file; kept, since parsing takes longer than reading an array."""
    file = io.BytesIO(header)
    if np.lib.format.read_magic(file) != (1, 0):
        raise ValueError("not in .npy format 1.0")
    shape, _, dtype = np.lib.format.read_array_header_1_0(file)
    return dtype, shape


class ShardCache:
    """Keeps the decoded shards used last, up to `max_bytes` of them; safe to share between threads."""

    def __init__(self, load: Callable[[int], DecodedShard], max_bytes: int) -> None:
        self._load = load
        self._max_bytes = max_bytes
        self._kept: OrderedDict[int, DecodedShard] = OrderedDict()
        self._num_bytes = 0
        self._lock = threading.Lock()

    def __getitem__(self, shard: int) -> DecodedShard:
        with self._lock:
            if shard in self._kept:
                self._kept.move_to_end(shard)
                return self._kept[shard]
            decoded = self._load(shard)
            self._kept[shard] = decoded
            self._num_bytes += decoded.num_bytes
            while self._num_bytes > self._max_bytes:
                self._num_bytes -= self._kept.popitem(last=False)[1].num_bytes
            return decoded
