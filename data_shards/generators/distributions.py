"""Distributions of generated raw files: lengths, popularity, repeats, ids and the order of rows.

Each can be evaluated for any range of rows independently: values that several events share (a user's
favourites, the start of a session) are hashes of the user's index instead of carried state.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np


def generator(seed: int, *key: int) -> np.random.Generator:
    """Return the random generator of the part of the output with this `key`, independent of other parts."""
    return np.random.Generator(np.random.SFC64(np.random.SeedSequence(seed, spawn_key=key)))


def draw_lengths(
    total: int, num_users: int, *, sigma: float, least: int, most: int, rng: np.random.Generator
) -> np.ndarray:
    """Draw (num_users,) int64 log-normal history lengths within [least, most] that add up to `total`."""
    assert least * num_users <= total <= most * num_users
    weights = rng.lognormal(0.0, sigma, num_users)
    spare, room = total - least * num_users, float(most - least)
    low, high = 0.0, max(1.0, room) / weights.min()
    for _ in range(100):  # clipping at `most` removes mass, so the scale is found by bisection
        middle = (low + high) / 2
        low, high = (middle, high) if np.minimum(weights * middle, room).sum() < spare else (low, middle)
    ends = np.rint(np.cumsum(np.minimum(weights * high, room))).astype(np.int64)
    lengths = least + np.diff(ends, prepend=0)
    missing = total - int(lengths.sum())  # a few events, from rounding the sum
    while missing:
        free = np.flatnonzero(lengths < most if missing > 0 else lengths > least)[: abs(missing)]
        lengths[free] += np.sign(missing)
        missing = total - int(lengths.sum())
    return lengths


@dataclass(frozen=True, kw_only=True)
class ZipfLaw:
    """Popularity proportional to 1 / (r + shift) at popularity rank r, drawn by inverting the continuous law.

    Takes one exponential per event for any number of items. The shift flattens the head: the most popular
    item has a share of about 1 / (shift * log(num_items / shift)).
    """

    num_items: int
    shift: float

    def ranks(self, uniform: np.ndarray) -> np.ndarray:
        """Map uniform numbers in [0, 1) to popularity ranks from 0, int64 of the same shape."""
        rank = np.exp(uniform * math.log1p(self.num_items / self.shift))
        rank -= 1.0
        rank *= self.shift
        return np.minimum(rank, self.num_items - 1).astype(np.int64)


@dataclass(frozen=True, kw_only=True)
class ScatteredIds:
    """A one-to-one map of 0..span-1 onto first..first+span-1 in scattered order, with 0 -> first."""

    first: int
    span: int

    def __call__(self, numbers: np.ndarray) -> np.ndarray:
        """Map int64 numbers below `span` to int64 ids of the same shape."""
        ids = numbers * coprime(self.span)
        ids %= self.span
        ids += self.first
        return ids


def coprime(span: int) -> int:
    """Return the first number from span * 0.618 on that is coprime to `span`."""
    step = max(1, int(span * 0.6180339887))
    while math.gcd(step, span) != 1:
        step += 1
    return step


def hash_uniform(user: np.ndarray, number: np.ndarray, salt: int) -> np.ndarray:
    """Hash (user, number, salt) to (events,) numbers in [0, 1). `user` and `number` are below 2**32."""
    bits = user.astype(np.uint64)
    bits <<= np.uint64(32)
    bits ^= number.astype(np.uint64)
    for factor, addend in ((0xBF58476D1CE4E5B9, salt), (0x94D049BB133111EB, 0)):  # splitmix64's factors
        bits ^= bits >> np.uint64(31)
        bits *= np.uint64(factor)
        bits += np.uint64(addend)
    bits ^= bits >> np.uint64(31)
    bits >>= np.uint64(11)
    return bits * 2.0**-53


@dataclass(frozen=True, kw_only=True)
class Repeats:
    """Draws a share of each user's events from a pool of favourites, earlier favourites more often.

    Attributes:
        share: share of events drawn from the pool.
        pool: (users,) int64 size of each user's pool.
        salt: salt of the hash that selects the favourites.
    """

    share: float
    pool: np.ndarray
    salt: int

    def uniform(self, user: np.ndarray, rng: np.random.Generator) -> np.ndarray:
        """Draw (events,) numbers in [0, 1) for `ZipfLaw.ranks`. Repeats of a favourite get equal numbers."""
        uniform = rng.random(len(user))
        choice = rng.random(len(user), dtype=np.float32)
        again = np.flatnonzero(choice < self.share)
        listener = user[again]
        place = choice[again] / np.float32(self.share)
        slot = (place * place * self.pool[listener]).astype(np.int64)
        uniform[again] = hash_uniform(listener, slot, self.salt)
        return uniform


@dataclass(frozen=True)
class RowOrder:
    """The user of each row of a file. Histories are cut into pieces, and the pieces are shuffled.

    Attributes:
        user: (pieces,) int64 user of each piece.
        first: (pieces,) int64 index of the piece's first event in the user's history.
        bounds: (pieces + 1,) int64 first row of each piece in the file, and the number of rows.
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
        """Return users and indices in their histories of rows [start, stop), (stop - start,) int64 each."""
        low = int(np.searchsorted(self.bounds, start, side="right")) - 1
        high = int(np.searchsorted(self.bounds, stop, side="left"))
        begin = np.maximum(self.bounds[low:high], start)
        size = np.minimum(self.bounds[low + 1 : high + 1], stop) - begin
        place = np.arange(start, stop)
        place += np.repeat(self.first[low:high] - self.bounds[low:high], size)
        return np.repeat(self.user[low:high], size), place


def copy_from_before(
    columns: list[np.ndarray], user: np.ndarray, share: float, rng: np.random.Generator
) -> None:
    """Copy the values in `columns` of the previous row, if it has the same user, to a `share` of the rows.

    Two adjacent rows are never both copies, so that a copy equals the previous row.
    """
    rows = np.flatnonzero(rng.random(len(user), dtype=np.float32) < share)
    rows = rows[rows > 0]
    rows = rows[np.diff(rows, prepend=-1) > 1]
    rows = rows[user[rows] == user[rows - 1]]
    for column in columns:
        column[rows] = column[rows - 1]
