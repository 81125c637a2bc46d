"""NDCG@10 of two baselines, popularity and a first-order Markov chain, for any order of the events."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from longplay.data_shards.stream.splits import MIN_LEAVE_ONE_OUT

CUTOFF = 10


@dataclass(frozen=True, eq=False)
class Histories:
    """The sequences of some users.

    Attributes:
        items: (events,) int64 index of each event's item among the items of these users, from 0.
        times: (events,) int64, not decreasing within a user.
        ptr: (users + 1,) int64 first event of each user; no user is empty.
        num_items: number of items of the whole dataset.
    """

    items: np.ndarray
    times: np.ndarray
    ptr: np.ndarray
    num_items: int

    def ties(self) -> np.ndarray:
        """Return (events,) int64: the group of each event, in order; events of a user and time share one."""
        begins = np.ones(len(self.times), bool)
        begins[1:] = self.times[1:] != self.times[:-1]
        begins[self.ptr[:-1]] = True
        return np.cumsum(begins)


def order_of_ties(groups: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Return (events,) int64 event indices in which the events of each group are in random order.

    Args:
        groups: `Histories.ties()`.
        rng: draws one number per event.
    """
    return np.argsort(groups + rng.random(len(groups)), kind="stable")


def order_before_targets(ptr: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Return (events,) int64 event indices: each user's events in random order, except that the last stays.

    Args:
        ptr: (users + 1,) int64 first event of each user.
        rng: draws one number per event.
    """
    keys = np.repeat(np.arange(len(ptr) - 1), np.diff(ptr)) + 0.5 * rng.random(ptr[-1])
    keys[ptr[1:] - 1] += 0.5
    return np.argsort(keys, kind="stable")


class LeaveOneOut:
    """Fits and tests both baselines with the leave-one-out split, for any order of the events.

    A user's last event is predicted from the events before it. The candidates are all items of the dataset
    except those in the history; the target always stays. Users with fewer than 3 events are only trained on.

    Args:
        histories: the users to train on and to test.
    """

    def __init__(self, histories: Histories) -> None:
        self._histories = histories
        ptr, lengths = histories.ptr, np.diff(histories.ptr)
        evaluated = lengths >= MIN_LEAVE_ONE_OUT
        self.num_queries = int(np.count_nonzero(evaluated))
        self._targets = ptr[1:][evaluated] - 1
        from_end = np.repeat(ptr[1:], lengths) - np.arange(ptr[-1])
        query = np.where(evaluated, np.cumsum(evaluated) - 1, -1)
        event_query = np.repeat(query, lengths)
        self._train = np.flatnonzero((event_query < 0) | (from_end > 2))
        self._history = np.flatnonzero((event_query >= 0) & (from_end > 1))
        self._history_query = event_query[self._history]
        first = np.zeros(ptr[-1], bool)
        first[ptr[:-1]] = True
        self._second = self._train[~first[self._train]]

    def gains(self, order: np.ndarray | None = None) -> dict[str, np.ndarray]:
        """Return "popularity" and "markov": (queries,) float64 gain of each user; its mean is NDCG@10.

        Args:
            order: (events,) int64 event indices, a permutation within each user; None is the stored order.
        """
        items = self._histories.items if order is None else self._histories.items[order]
        num_known = int(self._histories.items.max()) + 1
        counts = np.bincount(items[self._train], minlength=num_known)
        target, previous = items[self._targets], items[self._targets - 1]
        query, seen = self._seen(items, num_known)

        all_items, zeros = _Groups(np.zeros(num_known, np.int64), counts), np.zeros(len(target), np.int64)
        score = counts[target]
        above, tied = all_items.above_and_tied(zeros, score)
        tied += np.where(score == 0, self._histories.num_items - num_known, 0)
        popularity = _gains(score, above, tied, query, counts[seen])

        # After the previous item, an item scores (times it followed, its count), compared in this order.
        # Most items never followed it, so their score is their count.
        scores = _Transitions(items[self._second - 1], items[self._second], counts)
        score = scores.of(previous, target)
        above, tied = all_items.above_and_tied(zeros, score)
        tied += np.where(score == 0, self._histories.num_items - num_known, 0)
        less_above, less_tied = scores.by_count.above_and_tied(previous, score)
        more_above, more_tied = scores.by_score.above_and_tied(previous, score)
        above, tied = above - less_above + more_above, tied - less_tied + more_tied
        markov = _gains(score, above, tied, query, scores.of(previous[query], seen))
        return {"popularity": popularity, "markov": markov}

    def _seen(self, items: np.ndarray, num_known: int) -> tuple[np.ndarray, np.ndarray]:
        """Return (P,) queries and (P,) items of their histories, each pair once, without the targets."""
        pairs = np.sort(self._history_query * num_known + items[self._history])
        pairs = pairs[np.append(True, pairs[1:] != pairs[:-1])]  # np.unique is ten times slower
        query, seen = pairs // num_known, pairs % num_known
        other = seen != items[self._targets][query]
        return query[other], seen[other]


def _gains(
    score: np.ndarray, above: np.ndarray, tied: np.ndarray, query: np.ndarray, seen_score: np.ndarray
) -> np.ndarray:
    """Return the (Q,) float64 gain of each query; a tie counts half.

    Args:
        score: (Q,) int64 score of each target.
        above, tied: (Q,) int64 numbers of all items with a higher and an equal score, the target included.
        query, seen_score: (P,) int64 query and score of each item that is no candidate.
    """
    above = above - np.bincount(query[seen_score > score[query]], minlength=len(score))
    tied = tied - 1 - np.bincount(query[seen_score == score[query]], minlength=len(score))
    position = 1 + above + 0.5 * tied
    return np.where(position <= CUTOFF, 1 / np.log2(position + 1), 0)


class _Transitions:
    """Scores of items after a previous item: times it followed, then its count.

    Only the pairs that occur are held.

    Args:
        previous, following: (transitions,) int64 items.
        counts: (items,) int64 training events of each item.
    """

    def __init__(self, previous: np.ndarray, following: np.ndarray, counts: np.ndarray) -> None:
        self._counts, self._scale = counts, int(counts.max()) + 1
        self._pairs, self._times = np.unique(previous * len(counts) + following, return_counts=True)
        source, item = self._pairs // len(counts), self._pairs % len(counts)
        self.by_count = _Groups(source, counts[item])
        self.by_score = _Groups(source, self._times * self._scale + counts[item])

    def of(self, previous: np.ndarray, following: np.ndarray) -> np.ndarray:
        """Return the (N,) int64 scores of (N,) items after (N,) previous items."""
        pairs = previous * len(self._counts) + following
        at = np.searchsorted(self._pairs, pairs)
        found = np.append(self._pairs, -1)[at] == pairs
        return np.where(found, np.append(self._times, 0)[at], 0) * self._scale + self._counts[following]


class _Groups:
    """Integers in groups, sorted, to count those above a value.

    Args:
        groups: (N,) int64 group of each integer.
        values: (N,) int64.
    """

    def __init__(self, groups: np.ndarray, values: np.ndarray) -> None:
        self._distinct, ranks = np.unique(values, return_inverse=True)
        self._scale = len(self._distinct) + 1
        self._codes = np.sort(groups * self._scale + ranks)

    def above_and_tied(self, groups: np.ndarray, values: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Return (Q,) int64 numbers of the integers of a group above and equal to a value."""
        begins = groups * self._scale
        equal = np.searchsorted(self._codes, begins + np.searchsorted(self._distinct, values))
        above = np.searchsorted(self._codes, begins + np.searchsorted(self._distinct, values, side="right"))
        ends = np.searchsorted(self._codes, begins + self._scale)
        return ends - above, above - equal
