"""Say in a sentence what each number of an audit means, and mark those that make results untrustworthy."""

from __future__ import annotations

from dataclasses import dataclass

from longplay.data_shards.audit.audit import NUM_SHUFFLES, NUM_TIE_ORDERS, Audit, BaselineAudit, Spread

UNKNOWN = "unknown"
MAX_NUMBERED = 0.5
MAX_TIED_TARGETS = MAX_COLD_TARGETS = MAX_SINGLE_ITEM_USERS = 0.01
MAX_SPREAD = 0.02
MIN_ORDER_LOSS = 0.1
MIN_STANDARD_ERRORS = 3
MAX_STANDARD_DEVIATIONS = 4
MAX_DUPLICATES = 0.001
MAX_REPEATS = MAX_FUTURE_LEAK = 0.05
MIN_IDS_PRESENT = 0.99
_NO_TARGETS = "No user has 3 events."


@dataclass(frozen=True, kw_only=True)
class Finding:
    """One line of an audit.

    Attributes:
        name: what is measured.
        value: the number as text, or `UNKNOWN`.
        problem: whether the number makes results untrustworthy.
        text: what the number means, and what follows if it is a problem.
    """

    name: str
    value: str
    problem: bool
    text: str


def findings(audit: Audit) -> list[Finding]:
    """Return the lines of an audit, always the same ones in the same order."""
    numbered = (audit.numbered_users or 0) > MAX_NUMBERED
    return [
        _share(
            "numbered events",
            audit.numbered_users,
            MAX_NUMBERED,
            "of the tested users have consecutive integers as times.",
            "They number the events and are no dates, so ties and leaks of the original data cannot be seen.",
        ),
        _share(
            "tied test targets",
            None if numbered else audit.tied_targets,
            MAX_TIED_TARGETS,
            "of the tested users have several items at the time of their last event.",
            "The order of rows in the source decides which of them is the test target.",
            unknown="The times number the events, so ties are lost." if numbered else _NO_TARGETS,
        ),
        *_baseline_findings(audit.baselines, numbered),
        _share(
            "duplicates",
            audit.duplicates,
            MAX_DUPLICATES,
            "of the events have the same user, item and time as an earlier one.",
            "If a test target has a copy, the history already holds it.",
        ),
        _share(
            "immediate repeats",
            audit.immediate_repeats,
            MAX_REPEATS,
            "of the events are of the same item as the user's previous event.",
            "A model that repeats the last item scores high, unless seen items are excluded.",
        ),
        _share(
            "cold test targets",
            audit.cold_targets,
            MAX_COLD_TARGETS,
            "of the test targets are items without a training event.",
            "A model that learns items by id cannot find them.",
        ),
        _ids("item", audit.item_ids_present),
        _ids("user", audit.user_ids_present),
        _share(
            "single-item users",
            audit.single_item_users,
            MAX_SINGLE_ITEM_USERS,
            "of the users have events of one item only.",
            "Their test target is always the item that they had before.",
        ),
        _share(
            "leak of the future",
            None if numbered else audit.future_leak,
            MAX_FUTURE_LEAK,
            "of the test targets are earlier than the median training event.",
            "With the split leave_one_out, models train on events from after these targets.",
            unknown="The times number the events and cannot be compared between users."
            if numbered
            else _NO_TARGETS,
        ),
    ]


def _share(
    name: str, share: float | None, most: float, meaning: str, consequence: str, *, unknown: str = _NO_TARGETS
) -> Finding:
    """Return the finding about a share, which is a problem above `most`."""
    if share is None:
        return Finding(name=name, value=UNKNOWN, problem=False, text=unknown)
    return _finding(name, share, share > most, meaning, consequence)


def _finding(name: str, share: float, problem: bool, meaning: str, consequence: str) -> Finding:
    """Return a finding; the consequence is given only for a problem. A share above 0 never reads as 0."""
    value = "<0.01%" if 0 < share < 0.0001 else f"{share:.2%}"
    text = f"{meaning} {consequence}" if problem else meaning
    return Finding(name=name, value=value, problem=problem, text=text)


def _ids(kind: str, share: float | None) -> Finding:
    name = f"{kind} ids that occur"
    if share is None:
        text = f"The source does not number the {kind}s, so missing ones are not known."
        return Finding(name=name, value=UNKNOWN, problem=False, text=text)
    return _finding(
        name,
        share,
        share < MIN_IDS_PRESENT,
        f"of the integers from the lowest to the highest {kind} id occur.",
        f"A study that takes the highest id as the number of {kind}s counts {kind}s without events.",
    )


def _baseline_findings(found: BaselineAudit | None, numbered: bool) -> list[Finding]:
    names = ("popularity, ties reordered", "Markov, ties reordered", "Markov, events shuffled")
    if found is None:
        text = "No user that the baselines use has 3 events."
        return [Finding(name=name, value=UNKNOWN, problem=False, text=text) for name in names]
    return [
        _spread(names[0], found.popularity, numbered),
        _spread(names[1], found.markov, numbered),
        _order_loss(names[2], found),
    ]


def _spread(name: str, spread: Spread, numbered: bool) -> Finding:
    if numbered:
        text = f"NDCG@10 is {spread.as_stored:.4f}. The times number the events, so ties are lost."
        return Finding(name=name, value=UNKNOWN, problem=False, text=text)
    unusual = abs(spread.as_stored - spread.mean) > MAX_STANDARD_DEVIATIONS * spread.std
    return _finding(
        name,
        spread.relative,
        spread.relative > MAX_SPREAD,
        f"is the spread of NDCG@10: {spread.as_stored:.4f} in the source's order of tied events, "
        f"{spread.lowest:.4f} to {spread.highest:.4f} over {NUM_TIE_ORDERS} random orders.",
        "No random order gives the source's value: the order of rows holds information."
        if unusual
        else "Copies of the data in other row orders give results this far apart.",
    )


def _order_loss(name: str, found: BaselineAudit) -> Finding:
    before, after = found.markov.as_stored, found.markov_shuffled
    gain = before - after
    share = gain / before if before else 0.0
    certain = gain >= MIN_STANDARD_ERRORS * found.order_gain_se
    return _finding(
        name,
        share,
        share < MIN_ORDER_LOSS or not certain,
        f"of NDCG@10 is lost: {before:.4f} becomes {after:.4f} (mean of {NUM_SHUFFLES} shuffles of the "
        f"events before each target), a loss of {gain:.4f} ± {found.order_gain_se:.4f}.",
        "The order of events predicts little."
        if share < MIN_ORDER_LOSS
        else f"The loss is below {MIN_STANDARD_ERRORS} standard errors: too few users to tell.",
    )
