"""Sort stably by several keys, with one sort of packed 64-bit words if the keys fit."""

from __future__ import annotations

import numpy as np

_WORD_BITS = 64


def stable_order(*keys: np.ndarray) -> np.ndarray:
    """Return the (N,) int64 indices that sort entries in ascending order, stably.

    Args:
        keys: (N,) integers each, the most significant key first.
    """
    num = len(keys[0])
    if num == 0:
        return np.empty(0, np.int64)
    least = [int(key.min()) for key in keys]
    bits = [(int(key.max()) - low).bit_length() for key, low in zip(keys, least, strict=True)]
    place_bits = (num - 1).bit_length()
    if sum(bits) + place_bits > _WORD_BITS:
        return np.lexsort(keys[::-1])
    words = np.zeros(num, np.uint64)
    for key, low, width in zip(keys, least, bits, strict=True):
        words <<= np.uint64(width)
        words |= key.astype(np.uint64) - np.uint64(low % (1 << _WORD_BITS))
    words <<= np.uint64(place_bits)
    words |= np.arange(num, dtype=np.uint64)
    words.sort()
    words &= np.uint64((1 << place_bits) - 1)
    return words.view(np.int64)


def concatenated_ranges(begins: np.ndarray, lengths: np.ndarray) -> np.ndarray:
    """Return the numbers of all ranges [begin, begin + length), concatenated."""
    starts = np.cumsum(lengths) - lengths
    return np.repeat(begins - starts, lengths) + np.arange(int(lengths.sum()))


def narrowest(values: np.ndarray, least: int, most: int) -> np.ndarray:
    """Return `values - least` as uint32 if `most - least` fits, otherwise `values`."""
    return (values - least).astype(np.uint32) if most - least < 1 << 32 else values
