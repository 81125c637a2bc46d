"""Fill packed rows with items, targets, segment numbers and columns: in C++ without the GIL, or by NumPy."""

import ctypes
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from longplay.data_shards.stream.packing import PackedRows
from longplay.native.loading import call_native, load_native

_SOURCE = Path(__file__).with_suffix(".cpp")


class _Sizes(ctypes.Structure):
    """The struct `Sizes` of the C++ source."""

    _fields_ = [(name, ctypes.c_int64) for name in ("rows", "length", "value_bytes")]


def fill_rows(
    rows: PackedRows, items: np.ndarray, item_ids: np.ndarray, targets: np.ndarray, seq_idx: np.ndarray
) -> None:
    """Overwrite the arrays with the segments of `rows`.

    Args:
        items: (events,) int32, the concatenated events. Each segment is followed by one more event, the
            target of its last slot.
        item_ids: (rows, L) int64, 0 = padding.
        targets: (rows, L) int64, the item after each of `item_ids`, 0 = padding.
        seq_idx: (rows, L) int32, number of each slot's segment; trailing padding counts as one more segment.
    """
    if rows.num_rows and load_native(_SOURCE) is not None:
        assert (rows.sources + rows.lengths).max() < len(items), "a segment ends after the last event"
        sizes = _Sizes(*item_ids.shape)
        call_native(_SOURCE, "fill_rows", sizes, items, *_segments(rows), item_ids, targets, seq_idx)
        return
    sources, destinations, seq_idx[:] = rows.slots(item_ids.shape[1])
    for values, shift in ((item_ids, 0), (targets, 1)):
        values[:] = 0
        values.reshape(-1)[destinations] = items[sources + shift]


def fill_column(rows: PackedRows, values: np.ndarray, out: np.ndarray) -> None:
    """Overwrite `out` with a column of the segments of `rows`.

    Args:
        values: (events,) of any dtype, the concatenated events.
        out: (rows, L) of the same dtype; padding becomes 0.
    """
    assert values.dtype == out.dtype
    if rows.num_rows and load_native(_SOURCE) is not None:
        assert (rows.sources + rows.lengths).max() <= len(values), "a segment ends after the last event"
        sizes = _Sizes(*out.shape, values.itemsize)
        call_native(_SOURCE, "fill_column", sizes, np.ascontiguousarray(values), *_segments(rows), out)
        return
    sources, destinations, _ = rows.slots(out.shape[1])
    out[:] = 0
    out.reshape(-1)[destinations] = values[sources]


def _segments(rows: PackedRows) -> Iterator[np.ndarray]:
    return (np.ascontiguousarray(each) for each in (rows.sources, rows.lengths, rows.row_ptr))
