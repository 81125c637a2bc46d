"""The rank that hangs is named from the states that the ranks report."""

from __future__ import annotations

import pytest

from longplay.distributed.runtime import hang
from longplay.distributed.runtime.hang import AwakeClock, Hang, HangDetector, RankState
from longplay.distributed.runtime.waiting import current_wait, waiting

NAMED = "no rank made progress for 8 s: rank 1 hangs while training step 12"


def after_silence(*states: RankState) -> Hang | None:
    """Return what is found when the states have not changed for 9 seconds."""
    detector, ranks = HangDetector(8), dict(enumerate(states))
    assert detector.check(ranks, 100.0) is None
    assert detector.check(ranks, 107.0) is None
    return detector.check(ranks, 109.0)


def at(collectives: int, waits_for: str = "", *, steps: int = 30) -> RankState:
    return RankState(steps=steps, collectives=collectives, waits_for=waits_for, doing="training step 12")


def test_the_rank_with_fewer_pieces_of_work_is_named() -> None:
    assert after_silence(at(9, "a"), at(9, "a", steps=29), at(9, "a")) == Hang(NAMED, 1)


def test_the_rank_with_fewer_collectives_is_named_wherever_the_others_are() -> None:
    """On a GPU the others wait where they read a result, which may be a place without a mark."""
    assert after_silence(at(10, "the loss"), at(9), at(10)) == Hang(NAMED, 1)


def test_the_only_rank_that_does_not_wait_is_named() -> None:
    assert after_silence(at(9, "the loss"), at(9), at(9, "all_reduce")) == Hang(NAMED, 1)


def test_no_rank_is_named_if_all_wait() -> None:
    cause = "no rank made progress for 8 s while training step 12"
    assert after_silence(at(9, "a"), at(9, "a")) == Hang(cause, None)


def test_a_single_process_is_named_by_its_work() -> None:
    found = after_silence(at(0))
    assert found is not None
    assert found.cause.startswith("no progress for 8 s while training step 12; ")


@pytest.mark.parametrize("field", ["steps", "progress"])
def test_any_progress_of_any_rank_restarts_the_time(field: str) -> None:
    def states(count: int) -> dict[int, RankState]:
        return {0: at(9, "the files"), 1: RankState(**{"steps": 30, "doing": "saving", field: count})}

    detector = HangDetector(8)
    for count in range(20):
        assert detector.check(states(count), 7.0 * count) is None
    assert detector.check(states(19), 7.0 * 19 + 9) is not None


def test_collectives_alone_are_no_progress() -> None:
    detector = HangDetector(8)
    for second in range(9):
        assert detector.check({0: at(second)}, float(second)) is None
    assert detector.check({0: at(9)}, 9.0) is not None


def test_the_start_may_take_three_minutes() -> None:
    detector = HangDetector(8)
    assert detector.check({0: RankState(steps=0)}, 0.0) is None
    assert detector.check({0: RankState(steps=0)}, 179.0) is None
    assert detector.check({0: RankState(steps=0)}, 181.0) is not None


def test_a_suspended_process_has_not_hung(monkeypatch: pytest.MonkeyPatch) -> None:
    readings = iter([50.0, 50.5, 51.0, 7000.0, 7000.5])
    monkeypatch.setattr(hang.time, "monotonic", lambda: next(readings))
    clock = AwakeClock()
    assert [clock.now() for _ in range(4)] == [0.5, 1.0, 3.0, 3.5]


def test_marks_are_nested_and_end_with_an_exception() -> None:
    with waiting("the save"):
        with pytest.raises(ZeroDivisionError), waiting("all_reduce"):
            _ = 1 / len(current_wait().removeprefix("all_reduce"))
        assert current_wait() == "the save"
    assert current_wait() == ""
