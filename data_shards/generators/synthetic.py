"""Generate events in which order carries information, so that a sequence model can learn from it.

Each user has a few favorite interests. A Markov chain stays in the current interest for some events and then
moves, usually to a favorite, sometimes to a new interest that replaces a favorite. The items of an interest
form a ring: with `follow_probability` the next item is one of the next few on the ring, otherwise any item of
the interest by popularity. Popularity is Zipf-Mandelbrot over the catalog; history lengths are log-normal.
The interest and the ring predict the next item far better than popularity.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from longplay.data_shards.errors import DataError

_ITEMS_PER_INTEREST = 50
_NUM_FAVOURITES = 5
_MIN_LENGTH = 5
_ZIPF_SHIFT = 0.01
_MEAN_STAY_EVENTS = 25
_NEW_INTEREST_PROBABILITY = 0.2
_RING_STEPS = np.array([1, 2, 3, 4])
_RING_WEIGHTS = np.array([0.5, 0.25, 0.15, 0.1])
_FIRST_TIME_S = 1_600_000_000
_YEAR_S = 365 * 86_400
_MEDIAN_GAP_S = 240


@dataclass(frozen=True, kw_only=True)
class SyntheticEvents:
    """A seeded generator of listening histories.

    Attributes:
        users, items: size of the user base and of the catalog.
        events: exact number of events. Every user has at least 5.
        zipf: exponent of the popularity law, at most 10; 0 makes all items equally popular.
        length_sigma: spread of the log-normal history lengths, at most 10; 0 makes all lengths equal.
        follow_probability: share of events that follow the ring.
        seed: seed of the generator.
    """

    users: int = 2_500
    items: int = 5_000
    events: int = 250_000
    zipf: float = 1.0
    length_sigma: float = 0.9
    follow_probability: float = 0.5
    seed: int = 0

    def __post_init__(self) -> None:
        for name, minimum in (
            ("users", 1),
            ("items", _ITEMS_PER_INTEREST),
            ("events", self.users * _MIN_LENGTH),
        ):
            if getattr(self, name) < minimum:
                raise DataError(f"--{name} is {getattr(self, name)}, but must be at least {minimum}")
        if self.seed < 0:
            raise DataError(f"--seed is {self.seed}, but must not be negative")
        for name, most in (("zipf", 10), ("length_sigma", 10), ("follow_probability", 1)):
            value = getattr(self, name)
            if not 0 <= value <= most:  # NaN is refused too
                raise DataError(f"--{name.replace('_', '-')} is {value}, but must be between 0 and {most}")

    def generate(self) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Return user, item and time of the events, (events,) int64 each, grouped by user."""
        rng = np.random.default_rng(self.seed)
        lengths = self._lengths(rng)
        catalog = Catalog.draw(self.items, self.zipf, rng)
        items = self._walk(lengths, catalog, rng)
        user = np.repeat(rng.permutation(self.users * 4)[: self.users], lengths)
        original_ids = rng.choice(self.items * 10, self.items, replace=False)
        return user, original_ids[items], _times(lengths, rng)

    def _lengths(self, rng: np.random.Generator) -> np.ndarray:
        """Draw (users,) history lengths of at least `_MIN_LENGTH` that add up to `events`."""
        weights = rng.lognormal(0.0, self.length_sigma, self.users)
        spare = self.events - self.users * _MIN_LENGTH
        ends = np.rint(np.cumsum(weights) / weights.sum() * spare).astype(np.int64)
        return _MIN_LENGTH + np.diff(ends, prepend=0)

    def _walk(self, lengths: np.ndarray, catalog: Catalog, rng: np.random.Generator) -> np.ndarray:
        """Draw the (events,) items, grouped by user.

        Each step of the loop draws one event of every user whose history has not ended.
        """
        order = np.argsort(-lengths, kind="stable")
        first = (np.cumsum(lengths) - lengths)[order]
        num_active = np.searchsorted(-lengths[order], -np.arange(lengths.max()), side="left")
        favorites = catalog.draw_interests(rng, (self.users, _NUM_FAVOURITES))
        interest = favorites[:, 0].copy()
        item = catalog.draw_items(rng, interest)
        items = np.empty(self.events, np.int64)
        for step, n in enumerate(num_active):
            if step:
                moved = np.flatnonzero(rng.random(n) < 1 / _MEAN_STAY_EVENTS)
                interest[moved] = _next_interests(favorites, moved, catalog, rng)
                drawn = catalog.draw_items(rng, interest[:n])
                follows = rng.random(n) < self.follow_probability
                follows[moved] = False
                item[:n] = np.where(follows, catalog.follow(rng, item[:n]), drawn)
            items[first[:n] + step] = item[:n]
        return items


@dataclass(frozen=True)
class Catalog:
    """Items and their interests.

    Item i is at index i // num_interests of the ring of interest i % num_interests.

    Attributes:
        num_items, num_interests: numbers of items and interests.
        by_interest: (items,) items ordered by interest.
        item_cdf: (items,) number of the interest plus cumulative popularity within it, in the order of
            `by_interest`.
        interest_cdf: (interests,) cumulative popularity of the interests.
    """

    num_items: int
    num_interests: int
    by_interest: np.ndarray
    item_cdf: np.ndarray
    interest_cdf: np.ndarray

    @classmethod
    def draw(cls, num_items: int, zipf: float, rng: np.random.Generator) -> Catalog:
        """Draw a catalog with Zipf-Mandelbrot popularity in random order."""
        num_interests = max(1, num_items // _ITEMS_PER_INTEREST)
        weights = (np.arange(1, num_items + 1) + _ZIPF_SHIFT * num_items) ** -zipf
        weights = rng.permutation(weights)
        interest = np.arange(num_items) % num_interests
        by_interest = np.argsort(interest, kind="stable")
        totals = np.bincount(interest, weights, num_interests)
        share = weights[by_interest] / totals[interest[by_interest]]
        ends = np.cumsum(np.bincount(interest, minlength=num_interests))
        within = np.cumsum(share)
        within -= np.repeat(np.concatenate([[0.0], within[ends[:-1] - 1]]), np.diff(ends, prepend=0))
        item_cdf = interest[by_interest] + np.minimum(within, 1.0)
        item_cdf[ends - 1] = np.arange(1, num_interests + 1)
        return cls(num_items, num_interests, by_interest, item_cdf, np.cumsum(totals) / totals.sum())

    def draw_interests(self, rng: np.random.Generator, shape: int | tuple[int, ...]) -> np.ndarray:
        """Draw an array of interests by popularity."""
        at = np.searchsorted(self.interest_cdf, rng.random(shape), side="right")
        return np.minimum(at, self.num_interests - 1)

    def draw_items(self, rng: np.random.Generator, interest: np.ndarray) -> np.ndarray:
        """Draw one item of each given interest, by popularity."""
        at = np.searchsorted(self.item_cdf, interest + rng.random(len(interest)), side="right")
        return self.by_interest[np.minimum(at, self.num_items - 1)]

    def follow(self, rng: np.random.Generator, item: np.ndarray) -> np.ndarray:
        """Draw one item that follows each given item on its ring."""
        interest, index = item % self.num_interests, item // self.num_interests
        ring = (self.num_items - interest + self.num_interests - 1) // self.num_interests
        index = (index + rng.choice(_RING_STEPS, len(item), p=_RING_WEIGHTS)) % ring
        return index * self.num_interests + interest


def _next_interests(
    favorites: np.ndarray, users: np.ndarray, catalog: Catalog, rng: np.random.Generator
) -> np.ndarray:
    """Draw the interests to which `users` move. A new interest replaces an entry of `favorites` in place."""
    slot = rng.integers(0, _NUM_FAVOURITES, len(users))
    renewed = rng.random(len(users)) < _NEW_INTEREST_PROBABILITY
    favorites[users[renewed], slot[renewed]] = catalog.draw_interests(rng, int(renewed.sum()))
    return favorites[users, slot]


def _times(lengths: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Draw (events,) int64 Unix seconds, ascending within each user from a random start within one year."""
    gaps = rng.lognormal(np.log(_MEDIAN_GAP_S), 1.5, int(lengths.sum())).astype(np.int64)
    first = np.cumsum(lengths) - lengths
    gaps[first] = _FIRST_TIME_S + rng.integers(0, _YEAR_S, len(lengths))
    elapsed = np.cumsum(gaps)
    before = elapsed[first] - gaps[first]
    return elapsed - np.repeat(before, lengths)
