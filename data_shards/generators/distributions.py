"""Distributions of generated raw files: history lengths, popularity, repeats, ids and the order of rows.

Any range of rows can be generated on its own: values that several events share (a user's favorites, the
start of a session) are hashes of the user's index, so no state is carried from row to row.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np


def keyed_generator(seed: int, *key: int) -> np.random.Generator:
    """Return a random generator for `key`, independent of the generators for other keys."""
    return np.random.Generator(np.random.SFC64(np.random.SeedSequence(seed, spawn_key=key)))


def draw_lengths(
    total: int, num_users: int, *, sigma: float, min_length: int, max_length: int, rng: np.random.Generator
) -> np.ndarray:
    """Draw history lengths that add up to `total`.

    Returns:
        (num_users,) int64, log-normal with spread `sigma`, clipped to [min_length, max_length].
    """
    assert min_length * num_users <= total <= max_length * num_users
    weights = rng.lognormal(0.0, sigma, num_users)
    spare, room = total - min_length * num_users, float(max_length - min_length)
    low, high = 0.0, max(1.0, room) / weights.min()
    for _ in range(100):  # clipping at `max_length` removes mass, so the scale is found by bisection
        middle = (low + high) / 2
        low, high = (middle, high) if np.minimum(weights * middle, room).sum() < spare else (low, middle)
    ends = np.rint(np.cumsum(np.minimum(weights * high, room))).astype(np.int64)
    lengths = min_length + np.diff(ends, prepend=0)
    missing = total - int(lengths.sum())  # a few events, lost to rounding
    while missing:
        free = np.flatnonzero(lengths < max_length if missing > 0 else lengths > min_length)
        free = free[: abs(missing)]
        lengths[free] += np.sign(missing)
        missing = total - int(lengths.sum())
    return lengths


@dataclass(frozen=True, kw_only=True)
class ZipfLaw:
    """Popularity proportional to 1 / (r + shift) at rank r = 0, 1, ..., sampled by inverting the CDF.

    A sample costs one exponential, independent of the number of items. The shift flattens the head: the most
    popular item has a share of about 1 / (shift * log(num_items / shift)).
    """

    num_items: int
    shift: float

    def ranks(self, uniform: np.ndarray) -> np.ndarray:
        """Map uniform numbers in [0, 1) to popularity ranks, int64 of the same shape."""
        rank = np.exp(uniform * math.log1p(self.num_items / self.shift))
        rank -= 1.0
        rank *= self.shift
        return np.minimum(rank, self.num_items - 1).astype(np.int64)


@dataclass(frozen=True, kw_only=True)
class ScatteredIds:
    """A bijection from 0..span-1 to first..first+span-1 that scatters adjacent numbers. Maps 0 to first."""

    first: int
    span: int

    def __call__(self, numbers: np.ndarray) -> np.ndarray:
        """Map int64 numbers below `span` to int64 ids of the same shape."""
        ids = numbers * coprime(self.span)
        ids %= self.span
        ids += self.first
        return ids


def coprime(span: int) -> int:
    """Return the smallest number, from 0.618 * span upwards, that is coprime to `span`."""
    step = max(1, int(span * 0.6180339887))
    while math.gcd(step, span) != 1:
        step += 1
    return step


def hash_uniform(user: np.ndarray, number: np.ndarray, salt: int) -> np.ndarray:
    """Hash (user, number, salt) to (events,) numbers in [0, 1). `user` and `number` are below 2**32."""
    bits = user.astype(np.uint64)
    bits <<= np.uint64(32)
    bits ^= number.astype(np.uint64)
    # the multipliers of splitmix64
    for factor, addend in ((0xBF58476D1CE4E5B9, salt), (0x94D049BB133111EB, 0)):
        bits ^= bits >> np.uint64(31)
        bits *= np.uint64(factor)
        bits += np.uint64(addend)
    bits ^= bits >> np.uint64(31)
    bits >>= np.uint64(11)
    return bits * 2.0**-53


@dataclass(frozen=True, kw_only=True)
class Repeats:
    """Repeated items: a share of each user's events is drawn from the user's pool of favorites.

    Favorites near the front of the pool are drawn more often.

    Attributes:
        share: share of events drawn from the pool.
        pool: (users,) int64 number of favorites of each user.
        salt: salt of the hash that selects the favorites.
    """

    share: float
    pool: np.ndarray
    salt: int

    def uniform(self, user: np.ndarray, rng: np.random.Generator) -> np.ndarray:
        """Draw (events,) numbers in [0, 1) for `ZipfLaw.ranks`. Events of one favorite get equal numbers."""
        uniform = rng.random(len(user))
        choice = rng.random(len(user), dtype=np.float32)
        repeated = np.flatnonzero(choice < self.share)
        repeat_user = user[repeated]
        fraction = choice[repeated] / np.float32(self.share)
        favorite = (fraction * fraction * self.pool[repeat_user]).astype(np.int64)
        uniform[repeated] = hash_uniform(repeat_user, favorite, self.salt)
        return uniform


@dataclass(frozen=True)
class RowOrder:
    """The order of a file's rows: each history is cut into pieces, and all pieces are shuffled.

    Attributes:
        user: (pieces,) int64 user of each piece.
        first: (pieces,) int64 index of the piece's first event in the user's history.
        bounds: (pieces + 1,) int64 first row of each piece in the file; the last entry is the number of rows.
    """

    user: np.ndarray
    first: np.ndarray
    bounds: np.ndarray

    @classmethod
    def draw(cls, lengths: np.ndarray, *, max_pieces: int, rng: np.random.Generator) -> RowOrder:
        """Cut each history into up to `max_pieces` pieces and shuffle all pieces."""
        num_pieces = rng.integers(1, max_pieces + 1, len(lengths))
        user = np.repeat(np.arange(len(lengths)), num_pieces)
        number = np.arange(len(user)) - np.repeat(np.cumsum(num_pieces) - num_pieces, num_pieces)
        cut = (number + rng.uniform(0.0, 0.8, len(user))) / num_pieces[user]
        first = np.where(number == 0, 0, (cut * lengths[user]).astype(np.int64))
        last = np.append(number[1:] == 0, True)
        stop = np.where(last, lengths[user], np.roll(first, -1))
        order = rng.permutation(np.flatnonzero(stop > first))
        size = (stop - first)[order]
        return cls(user[order], first[order], np.append(0, np.cumsum(size)))

    @property
    def num_rows(self) -> int:
        return int(self.bounds[-1])

    def rows(self, start: int, stop: int) -> tuple[np.ndarray, np.ndarray]:
        """Return the user of each row in [start, stop) and the index of its event in the user's history.

        Returns:
            user, index: (stop - start,) int64 each.
        """
        low = int(np.searchsorted(self.bounds, start, side="right")) - 1
        high = int(np.searchsorted(self.bounds, stop, side="left"))
        begin = np.maximum(self.bounds[low:high], start)
        size = np.minimum(self.bounds[low + 1 : high + 1], stop) - begin
        index = np.arange(start, stop)
        index += np.repeat(self.first[low:high] - self.bounds[low:high], size)
        return np.repeat(self.user[low:high], size), index


def copy_previous_rows(
    columns: list[np.ndarray], user: np.ndarray, share: float, rng: np.random.Generator
) -> None:
    """Replace a `share` of the rows of `columns` with the previous row, where both rows have the same user.

    Two adjacent rows are never both replaced, so a replaced row equals the row before it.
    """
    rows = np.flatnonzero(rng.random(len(user), dtype=np.float32) < share)
    rows = rows[rows > 0]
    rows = rows[np.diff(rows, prepend=-1) > 1]
    rows = rows[user[rows] == user[rows - 1]]
    for column in columns:
        column[rows] = column[rows - 1]
