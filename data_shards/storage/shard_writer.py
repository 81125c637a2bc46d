"""Write shards: tar archives of blocks of users, in the form of WebDataset.

A sample holds consecutive users with about 64 Ki events in all. Its key is the index of its first user. Its
members are `lengths.npy`, the number of events of each user; `items.npy`, `times.npy` and one
`feature-NAME.npy` for each event feature, the concatenated events of the users in time order; and `json`: the
schema version, the first user, and the time to add to `times.npy`.
"""

from __future__ import annotations

from collections.abc import Mapping
from itertools import pairwise
from pathlib import Path
from types import MappingProxyType
from typing import Any

import numpy as np

from longplay.common.atomic import atomic_file
from longplay.common.checksums import sha256_of
from longplay.data_shards.errors import DataError
from longplay.data_shards.storage.features import DTYPES, member_name
from longplay.data_shards.storage.manifest import SCHEMA_VERSION, ShardInfo

BLOCK_EVENTS = 1 << 16
MAX_USER_EVENTS = 10**9
"""The largest member of a tar archive has 8 GiB, and a time takes up to 8 bytes."""
LENGTHS, ITEMS, TIMES, ABOUT = "lengths.npy", "items.npy", "times.npy", "json"


def write_shard(
    path: Path,
    first_user: int,
    lengths: np.ndarray,
    items: np.ndarray,
    times: np.ndarray,
    features: Mapping[str, np.ndarray] = MappingProxyType({}),
) -> ShardInfo:
    """Atomically write a shard and return its entry for the manifest. Equal input gives equal bytes.

    Args:
        path: the shard.
        first_user: index of its first user in the dataset.
        lengths: (users,) number of events of each user.
        items: (events,) int32 item ids of the users' concatenated sequences, or a type that converts to it.
        times: (events,) int64, or a type that converts to it.
        features: name -> (events,) integer codes of a categorical feature or floating-point values of a float
            feature, see `storage.features`.

    Raises:
        DataError: a user has too many events for a member of an archive.
    """
    from webdataset.writer import TarWriter  # imports torch, which takes seconds

    if lengths.max() > MAX_USER_EVENTS:
        raise DataError(
            f"a user has {lengths.max()} events, more than the {MAX_USER_EVENTS} that a shard can hold; "
            "limit histories with --max-user-events"
        )
    ptr = np.concatenate([[0], np.cumsum(lengths)])
    assert all(len(values) == ptr[-1] for values in features.values()), "a feature has another length"
    columns = {member_name(name): _as_feature(values) for name, values in features.items()}
    starts = np.unique(ptr[:-1] // BLOCK_EVENTS, return_index=True)[1].tolist()
    with atomic_file(path, sync=False) as file, TarWriter(file, mtime=0) as tar:
        for begin, end in pairwise([*starts, len(lengths)]):
            events = slice(int(ptr[begin]), int(ptr[end]))
            block = _block(first_user + begin, lengths[begin:end], items[events], times[events])
            tar.write(block | {name: values[events] for name, values in columns.items()})
    return ShardInfo(
        name=path.name,
        num_users=len(lengths),
        num_events=int(ptr[-1]),
        num_bytes=path.stat().st_size,
        sha256=sha256_of(path),
    )


def _block(first_user: int, lengths: np.ndarray, items: np.ndarray, times: np.ndarray) -> dict[str, Any]:
    """Return the sample of some users. Times of a range below 2**32 become uint32 offsets from the least."""
    least, most = int(times.min()), int(times.max())
    base, dtype = (least, "<u4") if most - least < 1 << 32 else (0, "<i8")
    return {
        "__key__": f"{first_user:010d}",
        LENGTHS: lengths.astype("<i4"),
        ITEMS: items.astype("<i4", copy=False),
        TIMES: (times - base).astype(dtype, copy=False),
        ABOUT: {"schema_version": SCHEMA_VERSION, "first_user": first_user, "time_base": base},
    }


def _as_feature(values: np.ndarray) -> np.ndarray:
    """Return a feature's values in the dtype of its kind."""
    kind = "categorical" if values.dtype.kind in "iu" else "float"
    return values.astype(DTYPES[kind], copy=False)
