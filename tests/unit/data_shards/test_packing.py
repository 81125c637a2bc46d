"""Windows cover every slot once, and every segment is within one row."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from longplay.data_shards.stream.packing import PackedRows, best_fit_decreasing, cut_windows


@given(st.lists(st.integers(1, 60), max_size=40), st.integers(1, 17), st.integers(0, 2**32))
def test_windows_cover_every_slot_exactly_once(lengths: list[int], context_length: int, seed: int) -> None:
    runs = np.array(lengths, np.int64)
    offsets = np.random.default_rng(seed).integers(1, context_length + 1, len(runs))
    run, start, length = cut_windows(runs, context_length, offsets)
    covered = [(r, s + i) for r, s, n in zip(run, start, length, strict=True) for i in range(n)]
    assert covered == [(r, i) for r, n in enumerate(lengths) for i in range(n)]
    assert np.all((length >= 1) & (length <= context_length))
    for r, n in enumerate(lengths):
        if n <= context_length:
            assert np.count_nonzero(run == r) == 1
        else:
            assert length[run == r][0] == offsets[r]


@given(st.lists(st.integers(1, 30), max_size=80))
def test_rows_are_neither_overfull_nor_empty(lengths: list[int]) -> None:
    pieces = np.array(lengths, np.int64)
    row_of, num_rows = best_fit_decreasing(pieces, 30)
    filled = np.bincount(row_of, pieces, num_rows)
    assert len(filled) == num_rows
    assert np.all((filled >= 1) & (filled <= 30))


@given(st.lists(st.integers(1, 12), max_size=60))
def test_packing_matches_a_naive_best_fit_decreasing(lengths: list[int]) -> None:
    spaces: list[int] = []
    for length in sorted(lengths, reverse=True):
        fitting = [row for row, space in enumerate(spaces) if space >= length]
        if fitting:
            spaces[min(fitting, key=lambda row: spaces[row])] -= length
        else:
            spaces.append(12 - length)
    pieces = np.array(lengths, np.int64)
    row_of, num_rows = best_fit_decreasing(pieces, 12)
    assert num_rows == len(spaces)
    assert sorted(12 - np.bincount(row_of, pieces, num_rows)) == sorted(spaces)


@given(st.lists(st.integers(1, 10), max_size=40), st.integers(0, 100))
def test_packing_keeps_segments_whole_and_in_order(lengths: list[int], seed: int) -> None:
    pieces = np.array(lengths, np.int64)
    events = np.arange(1, pieces.sum() + 1)
    begins = np.cumsum(pieces) - pieces
    rng = np.random.default_rng(seed)
    packed = PackedRows.pack(np.arange(len(pieces)), begins, pieces, 10, rng)
    sources, destinations, seq_idx = packed.slots(10)
    rows = np.zeros((packed.num_rows, 10), np.int64)
    rows.reshape(-1)[destinations] = events[sources]
    found = []
    for row, numbers in zip(rows, seq_idx, strict=True):
        for number in range(numbers.max() + 1):
            segment = row[numbers == number]
            assert np.all(np.diff(np.flatnonzero(numbers == number)) == 1)
            if segment.any():
                found.append(tuple(segment))
            else:
                assert number == numbers.max(), "padding is the last segment"
    whole = [tuple(events[b : b + n]) for b, n in zip(begins, lengths, strict=True)]
    assert sorted(found) == sorted(whole)


@given(st.lists(st.integers(1, 10), min_size=1, max_size=40))
def test_last_slots_are_the_ends_of_the_segments(lengths: list[int]) -> None:
    pieces = np.array(lengths, np.int64)
    packed = PackedRows.pack(np.arange(len(pieces)), np.cumsum(pieces) - pieces, pieces, 10)
    sources, destinations, _ = packed.slots(10)
    row, slot = packed.last_slots()
    at = dict(zip(destinations.tolist(), sources.tolist(), strict=True))
    assert [at[r * 10 + s] for r, s in zip(row, slot, strict=True)] == list(
        packed.sources + packed.lengths - 1
    )


def test_a_range_of_rows_has_the_slots_of_those_rows() -> None:
    rng = np.random.default_rng(0)
    pieces = rng.integers(1, 20, 200)
    packed = PackedRows.pack(np.arange(200), np.cumsum(pieces) - pieces, pieces, 20, rng)
    whole = packed.slots(20)
    part = packed.rows(7, 31).slots(20)
    inside = (whole[1] >= 7 * 20) & (whole[1] < 31 * 20)
    assert np.array_equal(part[0], whole[0][inside])
    assert np.array_equal(part[1], whole[1][inside] - 7 * 20)
    assert np.array_equal(part[2], whole[2][7:31])


@pytest.mark.parametrize("context_length", [250, 1000, 5000])
def test_padding_is_below_five_percent_at_ml1m_like_lengths(context_length: int) -> None:
    rng = np.random.default_rng(1)
    lengths = np.clip(rng.lognormal(np.log(96), 0.98, 6040).astype(np.int64), 20, 2314) - 3
    offsets = rng.integers(1, context_length + 1, len(lengths))
    _, _, windows = cut_windows(lengths, context_length, offsets)
    _, num_rows = best_fit_decreasing(windows, context_length)
    assert 1 - lengths.sum() / (num_rows * context_length) < 0.05
