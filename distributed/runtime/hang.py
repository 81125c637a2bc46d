"""Detect that a run hangs, and the rank that is the cause."""

import json
import time
from collections.abc import Mapping
from dataclasses import asdict, dataclass

STARTING = "starting"
_START_S = 180.0  # imports and the first engine can take a minute on a busy machine
_LONGEST_GAP_S = 2.0


@dataclass(frozen=True, kw_only=True)
class RankState:
    """The state that a rank reports with each heartbeat.

    Attributes:
        steps: pieces of work that it has begun.
        collectives: collectives that it has begun.
        progress: signs of progress within a piece of work or in another thread, such as blocks saved.
        waits_for: what it waits for; empty if it computes or hangs.
        doing: the piece of work.
    """

    steps: int
    collectives: int = 0
    progress: int = 0
    waits_for: str = ""
    doing: str = STARTING

    def to_text(self) -> str:
        """Return the state as text for a key-value store."""
        return json.dumps(asdict(self))

    @classmethod
    def from_text(cls, text: str) -> "RankState":
        """Return the state that `to_text` wrote."""
        return cls(**json.loads(text))


@dataclass(frozen=True)
class Hang:
    """The cause as text, and the rank that hangs; None if it is unknown."""

    cause: str
    rank: int | None


class HangDetector:
    """Compares the states of all ranks over time.

    Args:
        timeout_s: seconds without progress of any rank that count as a hang.
    """

    def __init__(self, timeout_s: float) -> None:
        self._timeout_s = timeout_s
        self._total, self._since = -1, 0.0

    def check(self, states: Mapping[int, RankState], now: float) -> Hang | None:
        """Return the hang if no rank has made progress for the timeout.

        The rank that has begun the fewest pieces of work and collectives is the cause: the others wait for
        it, whether or not they mark that. Among several such ranks, the cause is the only one that does not
        wait.

        Args:
            now: seconds on a clock that stands still while this process is suspended.
        """
        total = sum(state.steps + state.progress for state in states.values())
        if total != self._total:
            self._total, self._since = total, now
        starting = any(state.doing == STARTING for state in states.values())
        allowed_s = max(self._timeout_s, _START_S) if starting else self._timeout_s
        if now - self._since <= allowed_s:
            return None
        least = min((state.steps, state.collectives) for state in states.values())
        behind = [rank for rank, state in states.items() if (state.steps, state.collectives) == least]
        busy = [rank for rank in behind if not states[rank].waits_for]
        rank = busy[0] if len(busy) == 1 else behind[0] if len(behind) == 1 else None
        doing = states[behind[0] if rank is None else rank].doing
        if len(states) == 1:
            return Hang(
                f"no progress for {allowed_s:g} s while {doing}; if it is only slow, raise --train.timeout_s",
                None,
            )
        if rank is None:
            return Hang(f"no rank made progress for {allowed_s:g} s while {doing}", None)
        return Hang(f"no rank made progress for {allowed_s:g} s: rank {rank} hangs while {doing}", rank)


class AwakeClock:
    """Seconds during which this thread was awake: a suspended job has not hung when it continues."""

    def __init__(self) -> None:
        self._read, self._seconds = time.monotonic(), 0.0

    def now(self) -> float:
        """Return the seconds; a gap since the last call counts as 2 s at most."""
        read = time.monotonic()
        self._seconds += min(read - self._read, _LONGEST_GAP_S)
        self._read = read
        return self._seconds
