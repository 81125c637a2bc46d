"""Read shards with `tarfile` and NumPy only, independently of the writer and of WebDataset."""

from __future__ import annotations

import io
import tarfile
from pathlib import Path

import numpy as np

from longplay.common.json_files import Int64, parse_json
from longplay.data_shards.storage.features import member_name
from longplay.data_shards.storage.manifest import SCHEMA_VERSION


def read_arrays(
    path: Path, first_user: int, features: list[str]
) -> tuple[np.ndarray, np.ndarray, np.ndarray, list[np.ndarray]]:
    """Return the lengths, item ids and times of a shard's users, in order, as int64, and their features.

    Raises:
        ValueError: the archive has other members, or a member has the wrong type or length.
    """
    lengths, items, times = [], [], []
    columns: dict[str, list[np.ndarray]] = {member_name(name): [] for name in features}
    with tarfile.open(path, "r:") as tar:
        while (member := tar.next()) is not None:
            key = f"{first_user + sum(map(len, lengths)):010d}"
            for name in sorted(columns):
                columns[name].append(_array(tar, member, f"{key}.{name}", "<i4", "<f4"))
                member = tar.next()
            items.append(_array(tar, member, f"{key}.items.npy", "<i4").astype(np.int64))
            about = parse_json(_content(tar, tar.next(), f"{key}.json"), dict[str, Int64], f"{key}.json")
            base = about.get("time_base")
            expected = {"schema_version": SCHEMA_VERSION, "first_user": int(key), "time_base": base}
            if base is None or about != expected:
                raise ValueError(f"{key}.json is {about}")
            lengths.append(_array(tar, tar.next(), f"{key}.lengths.npy", "<i4").astype(np.int64))
            times.append(_array(tar, tar.next(), f"{key}.times.npy", "<u4", "<i8").astype(np.int64) + base)
            if not len(items[-1]) == len(times[-1]) == lengths[-1].sum():
                raise ValueError(f"block {key} has different numbers of items and times")
            for name, blocks in columns.items():
                if len(blocks[-1]) != len(items[-1]):
                    raise ValueError(f"{key}.{name} has {len(blocks[-1])} values, expected {len(items[-1])}")
    empty = np.empty(0, np.int64)
    found, ids, when = (np.concatenate([empty, *arrays]) for arrays in (lengths, items, times))
    return found, ids, when, [np.concatenate(blocks) if blocks else empty for blocks in columns.values()]


def _array(tar: tarfile.TarFile, member: tarfile.TarInfo | None, name: str, *dtypes: str) -> np.ndarray:
    """Return a one-dimensional array of one of the types."""
    array = np.lib.format.read_array(io.BytesIO(_content(tar, member, name)), allow_pickle=False)
    if array.dtype not in [np.dtype(dtype) for dtype in dtypes] or array.ndim != 1:
        raise ValueError(f"{name} is {array.dtype} {array.shape}")
    return array


def _content(tar: tarfile.TarFile, member: tarfile.TarInfo | None, name: str) -> bytes:
    """Return the content of a member that has the expected name."""
    file = None if member is None else tar.extractfile(member)
    if member is None or file is None or member.name != name:
        raise ValueError(f"contains {member.name if member else 'no more files'} instead of {name}")
    return file.read()
