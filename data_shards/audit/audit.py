"""Measure what makes results on a dataset untrustworthy."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from longplay.data_shards.audit.baselines import (
    Histories,
    LeaveOneOut,
    order_before_targets,
    order_of_ties,
)
from longplay.data_shards.audit.scan import Scan
from longplay.data_shards.progress import Track, untracked
from longplay.data_shards.storage.dataset import Dataset
from longplay.data_shards.storage.id_column import IdColumn

MAX_USERS, MAX_EVENTS = 100_000, 4_000_000
"""Users and events that the baselines are fitted to and tested on, at most."""
NUM_TIE_ORDERS = 10
NUM_SHUFFLES = 5
MIN_ID_DENSITY = 0.1
"""Ids that occupy a smaller share of their range do not number anything."""


@dataclass(frozen=True, kw_only=True)
class Spread:
    """NDCG@10 of a baseline.

    Attributes:
        as_stored: with tied events in the stored order, which is that of the source.
        lowest, mean, highest, std: over `NUM_TIE_ORDERS` random orders of tied events.
    """

    as_stored: float
    lowest: float
    mean: float
    highest: float
    std: float

    @property
    def relative(self) -> float:
        """The width of the interval that contains all three values, as a share of `as_stored`."""
        if self.as_stored == 0:
            return float(self.highest > 0)
        values = (self.as_stored, self.lowest, self.highest)
        return (max(values) - min(values)) / self.as_stored


@dataclass(frozen=True, kw_only=True)
class BaselineAudit:
    """Baselines with the leave-one-out split, ranking all items that are not in the history.

    Attributes:
        num_users: users that the baselines are fitted to, at random if the dataset has more.
        num_queries: those of them with a test target.
        popularity: ranks by the number of training events.
        markov: ranks by how often an item followed the history's last item in training, then by popularity.
        markov_shuffled: NDCG@10 of `markov` if the events before each target are shuffled, in training too;
            the mean over `NUM_SHUFFLES` shuffles.
        order_gain_se: standard error over users of `markov.as_stored - markov_shuffled`.
    """

    num_users: int
    num_queries: int
    popularity: Spread
    markov: Spread
    markov_shuffled: float
    order_gain_se: float


@dataclass(frozen=True, kw_only=True)
class Audit:
    """The result of `audit_dataset`. Shares are between 0 and 1, and None if they cannot be known.

    Test and training refer to the leave-one-out split. Users with at least 3 events are tested.

    Attributes:
        num_tested_users: users with a test target.
        numbered_users: share of the tested users whose times are consecutive integers.
        tied_targets: share of the tested users with several items at the time of their last event.
        duplicates: share of the events with the user, item and time of another, earlier event.
        immediate_repeats: share of the events with the item of the user's previous event.
        cold_targets: share of the test targets without a training event of any user.
        item_ids_present, user_ids_present: share of the integers from the lowest to the highest original id
            that occur; None if it is below `MIN_ID_DENSITY` or the ids are not integers.
        single_item_users: share of the users whose events are all of one item.
        future_leak: share of the test targets earlier than the median training event.
        baselines: None if no user of the sample is tested.
    """

    num_tested_users: int
    numbered_users: float | None
    tied_targets: float | None
    duplicates: float
    immediate_repeats: float
    cold_targets: float | None
    item_ids_present: float | None
    user_ids_present: float | None
    single_item_users: float
    future_leak: float | None
    baselines: BaselineAudit | None


def audit_dataset(
    dataset: Dataset,
    track: Track = untracked,
    *,
    max_users: int = MAX_USERS,
    max_events: int = MAX_EVENTS,
) -> Audit:
    """Measure what makes results on a dataset untrustworthy. Reads every shard twice, one at a time.

    Args:
        dataset: the dataset.
        track: reports progress.
        max_users, max_events: limits of the sample that the baselines use. Everything else uses all events.

    Raises:
        DataError: a shard is missing or damaged.
    """
    rng = np.random.default_rng(0)  # the sample of users, the orders of ties and the shuffles
    scan = Scan(dataset, _sample(dataset.lengths, rng, max_users, max_events), track)
    tested = len(scan.test_items)

    def of_tested(count: int) -> float | None:
        return count / tested if tested else None

    median = scan.median_training_time(track)
    return Audit(
        num_tested_users=tested,
        numbered_users=of_tested(scan.numbered_users),
        tied_targets=of_tested(scan.tied_targets),
        duplicates=scan.duplicates / dataset.num_events,
        immediate_repeats=scan.immediate_repeats / dataset.num_events,
        cold_targets=of_tested(int(np.count_nonzero(scan.train_counts[scan.test_items] == 0))),
        item_ids_present=_share_present(dataset.items.original_ids),
        user_ids_present=_share_present(dataset.user_original_ids),
        single_item_users=scan.single_item_users / dataset.num_users,
        future_leak=of_tested(int(np.count_nonzero(scan.test_times < median))),
        baselines=_audit_baselines(scan.histories, rng, track),
    )


def _sample(lengths: np.ndarray, rng: np.random.Generator, max_users: int, max_events: int) -> np.ndarray:
    """Return random users in ascending order: all if they fit the limits, at least one."""
    if len(lengths) <= max_users and lengths.sum() <= max_events:
        return np.arange(len(lengths))
    users = rng.permutation(len(lengths))[:max_users]
    fitting = np.searchsorted(np.cumsum(lengths[users]), max_events, side="right")
    return np.sort(users[: max(1, fitting)])


def _audit_baselines(histories: Histories, rng: np.random.Generator, track: Track) -> BaselineAudit | None:
    baselines = LeaveOneOut(histories)
    if not baselines.num_queries:
        return None
    stored = baselines.gains()
    groups = histories.ties()
    over_ties = [stored]
    if groups[-1] < len(groups):
        numbers = track(range(NUM_TIE_ORDERS), "reordering ties")
        over_ties = [baselines.gains(order_of_ties(groups, rng)) for _ in numbers]
    shuffled = np.zeros(baselines.num_queries)
    for _ in track(range(NUM_SHUFFLES), "shuffling histories"):
        shuffled += baselines.gains(order_before_targets(histories.ptr, rng))["markov"] / NUM_SHUFFLES
    return BaselineAudit(
        num_users=len(histories.ptr) - 1,
        num_queries=baselines.num_queries,
        popularity=_spread("popularity", stored, over_ties),
        markov=_spread("markov", stored, over_ties),
        markov_shuffled=float(shuffled.mean()),
        order_gain_se=float(np.std(stored["markov"] - shuffled) / np.sqrt(baselines.num_queries)),
    )


def _spread(name: str, stored: dict[str, np.ndarray], over_ties: list[dict[str, np.ndarray]]) -> Spread:
    values = np.array([gains[name].mean() for gains in over_ties])
    return Spread(
        as_stored=float(stored[name].mean()),
        lowest=float(values.min()),
        mean=float(values.mean()),
        highest=float(values.max()),
        std=float(values.std()),
    )


def _share_present(original_ids: IdColumn) -> float | None:
    """Return the share of the integers from the lowest to the highest id that occur; None if it is low."""
    if original_ids.is_text:
        return None
    numbers = original_ids.values.to_numpy()
    share = len(numbers) / (int(numbers.max()) - int(numbers.min()) + 1)
    return share if share >= MIN_ID_DENSITY else None
