"""Original ids of users and items: 64-bit integers or strings, stored and compared exactly."""

from __future__ import annotations

import functools
import json
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np
import polars as pl

from longplay.common.printable import short_repr
from longplay.data_shards.errors import DataError

_EXACT_FLOAT = float(2**53)
_NUMBER = r"^[+-]?(0|[1-9][0-9]*)(\.[0-9]*)?([eE][+-]?[0-9]+)?$"
_HASHED_AT_ONCE = 1 << 20


class IdColumn:
    """A column of unique ids, in Arrow memory. Strings take 16 bytes, plus their UTF-8 bytes beyond 12 bytes.

    Args:
        values: (N,) Int64 or String.

    Raises:
        DataError: the values are of another type, or contain nulls.
    """

    def __init__(self, values: pl.Series | np.ndarray) -> None:
        self.values = pl.Series(values)
        if self.values.dtype not in (pl.Int64, pl.String):
            raise DataError(f"original_id holds {self.values.dtype}, but ids are Int64 or String")
        if self.values.null_count():
            raise DataError("original_id contains nulls")

    def __len__(self) -> int:
        return len(self.values)

    def __getitem__(self, position: int) -> Any:
        return self.values[position]

    def __iter__(self) -> Iterator[Any]:
        return iter(self.values)

    def __repr__(self) -> str:
        return f"<IdColumn of {len(self):,} {self.description}>"

    def tolist(self) -> list[Any]:
        """Return all ids as Python integers or strings."""
        return self.values.to_list()

    @property
    def is_text(self) -> bool:
        """Whether the ids are strings."""
        return self.values.dtype == pl.String

    @property
    def description(self) -> str:
        """The type of the ids with an example, which is cut if it is long: "strings such as 'B00ABC'"."""
        kind = "strings" if self.is_text else "integers"
        return f"{kind} such as {short_repr(self.values[0])}" if len(self) else kind

    @property
    def padding(self) -> Any:
        """The value that marks "no id" in arrays of ids: -1, or None among strings."""
        return None if self.is_text else -1

    def take(self, positions: np.ndarray) -> np.ndarray:
        """Return the ids at some positions, an array of int64 or of `str` objects.

        Strings become Python objects of 60 bytes and more: take a few, and use `values` for many.
        """
        return self.values.gather(positions).to_numpy(writable=True)

    def find(self, ids: pl.Series) -> np.ndarray:
        """Return the (n,) int64 position of each of (n,) ids of the column's type; -1 where it is absent.

        The first call builds an index, which takes 12 bytes per id.
        """
        keys, order = self._index
        wanted = _keys(ids)
        at = np.searchsorted(keys, wanted)
        found = np.full(len(ids), -1, np.int64)
        rows = np.arange(len(ids))
        while True:
            rows = rows[at[rows] < len(keys)]
            rows = rows[keys[at[rows]] == wanted[rows]]
            if not len(rows):
                return found
            # Different strings may have equal keys: compare the ids themselves.
            candidates = order[at[rows]]
            equal = (self.values.gather(candidates) == ids.gather(rows)).to_numpy()
            found[rows[equal]] = candidates[equal]
            rows = rows[~equal]
            at[rows] += 1

    @functools.cached_property
    def _index(self) -> tuple[np.ndarray, np.ndarray]:
        """The keys in ascending order, and the position of each."""
        keys = pl.Series(_keys(self.values))
        order = keys.arg_sort()
        return keys.gather(order).to_numpy(), order.to_numpy()

    def typed(self, ids: Any) -> pl.Series:
        """Return a list or array of ids as a series of the column's type.

        Raises:
            ValueError: `ids` is not a list of integers, or of strings, as this column is.
        """
        if not self.is_text:
            array = as_int64(ids)
            if array is not None:
                return pl.Series(array)
        else:
            array = np.asarray(ids, dtype=object)
            if array.ndim == 1 and all(isinstance(value, str) for value in array):
                try:
                    return pl.Series(array.tolist(), dtype=pl.String)
                except UnicodeEncodeError as error:
                    raise ValueError(f"{error.object!r} is not valid Unicode") from None
        kind = "strings" if self.is_text else "64-bit integers"
        raise ValueError(f"is not a list of {kind}; ids here are {self.description}")

    def read(self, values: Sequence[Any]) -> pl.Series:
        """Return values of a file or a command line as ids of the column's type, null where that fails.

        An integer id may be text, with whitespace around it or a fraction of zeros: 10.0 is 10. A string id
        is text and is not changed.
        """
        if self.is_text:
            return pl.Series([value if _is_unicode(value) else None for value in values], dtype=pl.String)
        texts = [value if _is_unicode(value) else json.dumps(value, default=str) for value in values]
        return parse_integers(pl.Series(texts, dtype=pl.String))

    def update(self, digest: Callable[[Any], object]) -> None:
        """Feed the ids to a hash function: equal input means ids of equal type and content in equal order.

        Integers are 8 little-endian bytes each. Strings are a header with their number, then the length of
        each in bytes as such an integer, then their UTF-8 bytes.
        """
        if not self.is_text:
            digest(np.ascontiguousarray(self.values.to_numpy(), "<i8").data)
            return
        digest(f"strings {len(self)}\n".encode())
        parts = [self.values.slice(at, _HASHED_AT_ONCE) for at in range(0, len(self), _HASHED_AT_ONCE)]
        for part in parts:
            digest(part.str.len_bytes().to_numpy().astype("<i8").data)
        for part in parts:
            digest(part.str.join().item().encode())


def as_int64(values: Any) -> np.ndarray | None:
    """Return a list or array of integers as (N,) int64; None if it is anything else or does not fit."""
    try:
        array = np.asarray(values)
    except ValueError:  # lists of different lengths
        return None
    if array.ndim != 1 or (array.size and array.dtype.kind not in "iu"):
        return None
    if array.dtype.kind == "u" and array.max(initial=0) > np.iinfo(np.int64).max:
        return None
    return array.astype(np.int64)


def parse_integers(texts: pl.Series) -> pl.Series:
    """Return texts as Int64, null where a text is not a 64-bit integer or a float without a fraction.

    Text with leading zeros is not an integer, because printing the integer would not restore the text.
    """
    text = pl.col("text").str.strip_chars()
    number = text.cast(pl.Float64, strict=False)
    exact = (number == number.floor()) & (number.abs() < _EXACT_FLOAT)
    whole = pl.when(exact).then(number).cast(pl.Int64, strict=False)
    parsed = pl.when(text.str.contains(_NUMBER)).then(pl.coalesce(text.cast(pl.Int64, strict=False), whole))
    return texts.to_frame("text").select(parsed).to_series()


def _is_unicode(value: Any) -> bool:
    """Return whether a value is text that UTF-8 can encode."""
    return isinstance(value, str) and not any("\ud800" <= character <= "\udfff" for character in value)


def _keys(ids: pl.Series) -> np.ndarray:
    """Return a sortable number for each id: an integer itself, or the 64-bit hash of a string."""
    return (ids.hash() if ids.dtype == pl.String else ids).to_numpy()
