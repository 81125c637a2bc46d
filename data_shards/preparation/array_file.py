"""Named arrays in one file. Parts of an array can be read; a file is written atomically."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from longplay.common.atomic import atomic_file

_INDEX_BYTES = 8  # the length of the index, a little-endian integer, comes first


class ArrayFile:
    """A file of arrays. Thread-safe; the file is open only while it is read.

    Attributes:
        path: the file.
        meta: JSON data written with the arrays.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        with path.open("rb") as file:
            index_bytes = int.from_bytes(file.read(_INDEX_BYTES), "little")
            index = json.loads(file.read(index_bytes))
        self.meta: dict[str, Any] = index["meta"]
        self._arrays: dict[str, tuple[np.dtype, int, int]] = {
            name: (np.dtype(dtype), length, _INDEX_BYTES + index_bytes + begin)
            for name, (dtype, length, begin) in index["arrays"].items()
        }

    @staticmethod
    def write(path: Path, arrays: Mapping[str, np.ndarray], meta: Mapping[str, Any] | None = None) -> None:
        """Write one-dimensional `arrays` and JSON data."""
        entries, begin = {}, 0
        for name, values in arrays.items():
            entries[name] = (values.dtype.str, len(values), begin)
            begin += values.nbytes
        index = json.dumps({"arrays": entries, "meta": meta or {}}).encode()
        with atomic_file(path, sync=False) as file:
            file.write(len(index).to_bytes(_INDEX_BYTES, "little"))
            file.write(index)
            for values in arrays.values():
                file.write(np.ascontiguousarray(values).data)

    def length(self, name: str) -> int:
        """Return the number of entries of one array."""
        return self._arrays[name][1]

    def read(self, name: str, begin: int = 0, end: int | None = None) -> np.ndarray:
        """Return entries [begin, end) of one array, by default all."""
        end = self.length(name) if end is None else end
        return self.read_ranges(name, np.array([begin]), np.array([end - begin]))

    def read_ranges(self, name: str, begins: np.ndarray, lengths: np.ndarray) -> np.ndarray:
        """Return entries [begin, begin + length) of one array, concatenated over all ranges."""
        dtype, _, offset = self._arrays[name]
        values = np.empty(int(lengths.sum()), dtype)
        view = values.data.cast("B")
        at = 0
        with self.path.open("rb", buffering=0) as file:
            places = (offset + begins * dtype.itemsize).tolist()
            for place, num_bytes in zip(places, (lengths * dtype.itemsize).tolist(), strict=True):
                self._fill(file.fileno(), view[at : at + num_bytes], place)
                at += num_bytes
        return values

    def _fill(self, descriptor: int, view: memoryview, place: int) -> None:
        while len(view):
            num_read = os.preadv(descriptor, [view], place)
            if num_read == 0:
                raise OSError(None, "file is truncated", str(self.path))
            view, place = view[num_read:], place + num_read
