"""Fill packed rows with items, targets and segment numbers: in C++ without the GIL, or else by NumPy."""

import ctypes
from pathlib import Path

import numpy as np

from longplay.data_shards.stream.packing import PackedRows
from longplay.native.loading import call_native, load_native

_SOURCE = Path(__file__).with_suffix(".cpp")


class _Sizes(ctypes.Structure):
    """The struct `Sizes` of the C++ source."""

    _fields_ = [(name, ctypes.c_int64) for name in ("rows", "length")]


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
        segments = (np.ascontiguousarray(each) for each in (rows.sources, rows.lengths, rows.row_ptr))
        sizes = _Sizes(*item_ids.shape)
        call_native(_SOURCE, "fill_rows", sizes, items, *segments, item_ids, targets, seq_idx)
        return
    sources, destinations, seq_idx[:] = rows.slots(item_ids.shape[1])
    for values, shift in ((item_ids, 0), (targets, 1)):
        values[:] = 0
        values.reshape(-1)[destinations] = items[sources + shift]
