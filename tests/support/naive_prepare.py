"""A reference implementation of `longplay prepare` for malformed text, in plain Python."""

from __future__ import annotations

import re
from collections import Counter, defaultdict
from dataclasses import dataclass, field

from longplay.data_shards.preparation.options import PrepareOptions
from support.datasets import Sequences


@dataclass(frozen=True, kw_only=True)
class NaiveFormat:
    """A text format of the reference implementation.

    Attributes:
        sep: the separator.
        header: names of all fields.
        roles: names of the user, item and time fields.
        least: field -> smallest usable number.
        most_time: largest usable time.
        wanted: field -> value that a selected row must have.
    """

    sep: str
    header: tuple[str, ...]
    roles: tuple[str, str, str]
    least: dict[str, int] = field(default_factory=dict)
    wanted: dict[str, int] = field(default_factory=dict)
    most_time: int = 2**63 - 1

    def row(self, line: str) -> list[int] | str:
        """Return user, item and time of a line, or the reason why it is unusable or not selected."""
        if not line.strip():
            return "blank_line"
        fields = line.split(self.sep)
        if len(fields) != len(self.header):
            return "too_few_columns" if len(fields) < len(self.header) else "too_many_columns"
        values = dict(zip(self.header, fields, strict=True))
        numbers = {}
        for name in self.roles:
            number = integer_of(values[name])
            if not isinstance(number, int):
                return f"{'missing' if number is None else 'not_an_integer'}:{name}"
            is_late = name == self.roles[2] and number > self.most_time
            if number < self.least.get(name, number) or is_late:
                return f"out_of_range:{name}"
            numbers[name] = number
        for name, value in self.wanted.items():
            if integer_of(values[name], boolean=True) != value:
                return "not_selected"
        return [numbers[name] for name in self.roles]


def integer_of(text: str, *, boolean: bool = False) -> int | str | None:
    """Parse a field: return a 64-bit integer, None if it is empty, or its text if it is anything else."""
    text = text.strip()
    if boolean:
        text = {"true": "1", "false": "0"}.get(text.lower(), text)
    if not text or text == "NaN":
        return None
    if re.match(r"[+-]?0[0-9]", text):
        return text
    try:
        return int(text) if -(2**63) <= int(text) < 2**63 else text
    except ValueError:
        pass
    try:
        number = float(text)
    except ValueError:
        return text
    return int(number) if abs(number) < 2**53 and number == int(number) else text


def naive_prepare(
    lines: list[str], form: NaiveFormat, options: PrepareOptions
) -> tuple[Sequences, dict[str, int]]:
    """Return the sequences in the lines of all files, and the number of dropped rows by reason."""
    rows, dropped = [], Counter()
    for line in lines:
        row = form.row(line)
        if isinstance(row, str):
            dropped[row] += 1
        elif options.from_time is not None and row[2] < options.from_time:
            dropped["before_from"] += 1
        elif options.until_time is not None and row[2] >= options.until_time:
            dropped["after_until"] += 1
        else:
            rows.append(row)
    found: defaultdict[int, list[tuple[int, int]]] = defaultdict(list)
    for user, item, time in sorted(rows, key=lambda row: (row[0], row[2])):
        found[user].append((item, time))
    for user, events in found.items():
        if options.dedup_latest:
            last = {item: at for at, (item, _) in enumerate(events)}
            kept = [event for at, event in enumerate(events) if last[event[0]] == at]
            dropped["repeated_item"] += len(events) - len(kept)
            events = kept
        if options.max_user_events is not None:
            dropped["over_max_user_events"] += max(0, len(events) - options.max_user_events)
            events = events[-options.max_user_events :]
        found[user] = events
    return _fixed_point(dict(found), options, dropped), {why: n for why, n in dropped.items() if n}


def _fixed_point(found: Sequences, options: PrepareOptions, dropped: Counter[str]) -> Sequences:
    while True:
        counts = Counter(item for events in found.values() for item, _ in events)
        frequent = {
            user: [event for event in events if counts[event[0]] >= options.min_item_events]
            for user, events in found.items()
        }
        long = {user: events for user, events in frequent.items() if len(events) >= options.min_user_events}
        num_before, num_frequent, num_long = (
            sum(map(len, sequences.values())) for sequences in (found, frequent, long)
        )
        dropped["item_too_rare"] += num_before - num_frequent
        dropped["user_too_short"] += num_frequent - num_long
        found = long
        if num_long == num_before:
            return found
