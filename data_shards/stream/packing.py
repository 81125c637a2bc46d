"""Cut sequences into windows and pack the windows into rows."""

from __future__ import annotations

from collections import defaultdict
from dataclasses import dataclass

import numpy as np


def cut_windows(
    lengths: np.ndarray, context_length: int, offsets: np.ndarray
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Cut runs of consecutive slots into windows, so that every slot is in exactly one window.

    Args:
        lengths: (N,) slots of each run, at least 1.
        context_length: maximum length of a window.
        offsets: (N,) length of each run's first window, 1..context_length. Runs of at most `context_length`
            slots are not cut.

    Returns:
        run, start, length: (M,) each; for each window its run, first slot in the run, and number of slots.
    """
    first = np.where(lengths <= context_length, lengths, offsets)
    num_windows = 1 + -(-(lengths - first) // context_length)
    run = np.repeat(np.arange(len(lengths)), num_windows)
    nth = np.arange(len(run)) - np.repeat(np.cumsum(num_windows) - num_windows, num_windows)
    end = np.minimum(first[run] + nth * context_length, lengths[run])
    start = np.where(nth == 0, 0, first[run] + (nth - 1) * context_length)
    return run, start, end - start


def best_fit_decreasing(lengths: np.ndarray, capacity: int) -> tuple[np.ndarray, int]:
    """Assign pieces to rows of `capacity` slots with the best-fit-decreasing heuristic.

    Pieces are placed from longest to shortest, pieces of equal length in the given order. Each goes to the
    fullest row with enough space, or to a new row.

    Args:
        lengths: (N,) slots of each piece, 1..capacity.
        capacity: slots of a row.

    Returns:
        (N,) int64 row of each piece, and the number of rows.
    """
    order = np.argsort(-lengths, kind="stable")
    num_full = num_rows = int(np.count_nonzero(lengths == capacity))
    distinct, counts = np.unique(lengths[order[num_full:]], return_counts=True)
    placed: list[int] = []  # row of each shorter piece in `order`
    rows_by_space: defaultdict[int, list[int]] = defaultdict(list)
    spaces = 0  # bit s is set if a row has s free slots
    for length, count in zip(distinct[::-1].tolist(), counts[::-1].tolist(), strict=True):
        while count:
            fitting = spaces >> length
            if fitting:
                space = length + (fitting & -fitting).bit_length() - 1
                fullest = rows_by_space[space]
                row = fullest.pop()
                if not fullest:
                    spaces ^= 1 << space
            else:
                space, row = capacity, num_rows
                num_rows += 1
            pieces = 1 if count == 1 else min(count, space // length)  # the row stays the fullest that fits
            placed += (row,) * pieces
            count -= pieces
            left = space - pieces * length
            if left:
                rows_by_space[left].append(row)
                spaces |= 1 << left
    row_of = np.empty(len(lengths), np.int64)
    row_of[order[:num_full]] = np.arange(num_full)
    row_of[order[num_full:]] = placed
    return row_of, num_rows


@dataclass(frozen=True)
class PackedRows:
    """Segments, ordered by row.

    Attributes:
        users: (N,) int64 user of each segment.
        sources: (N,) int64 index of the segment's first event in the concatenated events that fill the rows.
        lengths: (N,) int64 slots of each segment.
        row_ptr: (rows + 1,) int64 first segment of each row. No row is empty.
    """

    users: np.ndarray
    sources: np.ndarray
    lengths: np.ndarray
    row_ptr: np.ndarray

    @property
    def num_rows(self) -> int:
        return len(self.row_ptr) - 1

    @property
    def num_filled(self) -> int:
        """Slots that are not padding."""
        return int(self.lengths.sum())

    @classmethod
    def pack(
        cls,
        users: np.ndarray,
        sources: np.ndarray,
        lengths: np.ndarray,
        capacity: int,
        rng: np.random.Generator | None = None,
    ) -> PackedRows:
        """Pack segments into rows.

        Args:
            users, sources, lengths: (N,) int64 each, see the attributes.
            capacity: slots of a row.
            rng: shuffles the rows and the segments of equal length; None keeps their order.
        """
        if rng is not None:
            shuffled = rng.permutation(len(lengths))
            users, sources, lengths = users[shuffled], sources[shuffled], lengths[shuffled]
        row_of, num_rows = best_fit_decreasing(lengths, capacity)
        if rng is not None:
            row_of = rng.permutation(num_rows)[row_of]
        order = np.argsort(row_of, kind="stable")
        row_ptr = np.concatenate([[0], np.cumsum(np.bincount(row_of, minlength=num_rows))])
        return cls(users[order], sources[order], lengths[order], row_ptr.astype(np.int64))

    def rows(self, start: int, stop: int) -> PackedRows:
        """Return rows [start, stop)."""
        begin, end = self.row_ptr[start], self.row_ptr[stop]
        part = slice(begin, end)
        return PackedRows(
            self.users[part], self.sources[part], self.lengths[part], self.row_ptr[start : stop + 1] - begin
        )

    def slots(self, context_length: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Return the source and destination of each filled slot.

        Returns:
            The sources, (filled,) int64 indices into the concatenated events; the destinations, (filled,)
            int64 indices into the flattened (rows, L) arrays; and `seq_idx`, (rows, L) int32, the number of
            each slot's segment within its row, where trailing padding counts as one more segment.
        """
        per_row = np.diff(self.row_ptr)
        row = np.repeat(np.arange(self.num_rows), per_row)
        begins = np.cumsum(self.lengths) - self.lengths
        shift = np.repeat(row * context_length - begins[self.row_ptr[row]], self.lengths)
        filled = np.arange(int(self.lengths.sum()))
        destinations = filled + shift
        sources = filled + np.repeat(self.sources - begins, self.lengths)
        seq_idx = np.repeat(per_row.astype(np.int32)[:, None], context_length, axis=1)
        number = np.arange(len(row)) - self.row_ptr[row]
        seq_idx.reshape(-1)[destinations] = np.repeat(number, self.lengths)
        return sources, destinations, seq_idx

    def last_slots(self) -> tuple[np.ndarray, np.ndarray]:
        """Return the (N,) row and (N,) slot of each segment's last event."""
        row = np.repeat(np.arange(self.num_rows), np.diff(self.row_ptr))
        ends = np.cumsum(self.lengths)
        row_begins = (ends - self.lengths)[self.row_ptr[row]]
        return row, ends - row_begins - 1
