"""Lines `user item item ...`, the layout of S3-Rec and many others."""

# pyright: reportAttributeAccessIssue=false

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from longplay.data_shards.readers.arguments import add_paths_argument
from longplay.data_shards.readers.bad_rows import TOO_FEW_COLUMNS
from longplay.data_shards.readers.columns import Columns
from longplay.data_shards.readers.inputs import find_files
from longplay.data_shards.readers.registry import READERS, Reader
from longplay.data_shards.readers.row_parser import RawTable
from longplay.data_shards.readers.tables import HEAD_ROWS, FileSource, TableFile
from longplay.data_shards.readers.text_files import TextFile
from longplay.data_shards.readers.text_lines import LineFormat

_LINES = LineFormat("\x1f", 1, quotes=False)
_MIN_EVENT_BYTES = 2


@dataclass(frozen=True, kw_only=True)
class LineSource(FileSource):
    """Lines `user item item ...`, oldest first, separated by spaces. The order of the items is their time."""

    def find_files(self) -> tuple[Path, ...]:
        return find_files(self.paths, (".txt",))

    def open_file(self, path: Path) -> TableFile:
        return _LineFile(TextFile.open(path))


class _LineFile:
    """A text file of such lines."""

    is_text = True
    header: Sequence[str] = ("user", "item")

    def __init__(self, file: TextFile) -> None:
        self.path, self.weight, self._file = file.path, file.num_bytes, file
        self.max_rows = file.max_text_bytes // _MIN_EVENT_BYTES + 1

    def head(self) -> pa.Table:
        table = _events(self._file.first_lines(skip_header=False), "").table
        return table.filter(table["fault"].is_null()).select(["c0", "c1"]).slice(0, HEAD_ROWS)

    def blocks(self, block_bytes: int, needed: Sequence[int]) -> Iterator[tuple[int, Callable[[], RawTable]]]:
        for block in self._file.blocks(block_bytes, skip_header=False):
            yield block.weight, functools.partial(_read, block.read, f"{self.path}, line")


def _read(read: Callable[[], bytes], where: str) -> RawTable:
    return _events(read(), where)


def _events(data: bytes, where: str) -> RawTable:
    """Return a row for each item. A line without an item gives one unusable row."""
    lines, numbers, num_blank = _LINES.split(data, [0])
    words = pc.utf8_split_whitespace(pc.utf8_trim_whitespace(lines["c0"].combine_chunks()))
    lengths = pc.list_value_length(words).to_numpy()
    items = np.maximum(lengths - 1, 1)
    of_line = np.repeat(np.arange(len(lengths)), items)
    starts = np.cumsum(lengths) - lengths
    first = np.cumsum(items) - items
    place = starts[of_line] + 1 + np.arange(len(of_line)) - first[of_line]
    empty, nothing = lengths[of_line] < 2, pa.scalar(None, pa.string())
    fault, text = (
        lines[name].combine_chunks() if name in lines.column_names else pa.nulls(len(lines), pa.string())
        for name in ("fault", "text")
    )
    flat = pc.list_flatten(words)
    table = pa.table(
        {
            "c0": flat.take(pa.array(starts[of_line])),
            "c1": flat.take(pa.array(np.where(empty, starts[of_line], place))),
            "fault": pc.coalesce(fault.take(of_line), pc.if_else(pa.array(empty), TOO_FEW_COLUMNS, nothing)),
            "text": pc.coalesce(text.take(of_line), pc.if_else(pa.array(empty), "", nothing)),
        }
    )
    return RawTable(table, where, numbers[of_line] + 1, num_blank)


READERS.register(
    "s3rec",
    Reader(
        help="lines `user item item ...`, oldest item first, as S3-Rec writes them",
        add_arguments=add_paths_argument,
        open=lambda args: LineSource(
            format="s3rec",
            paths=tuple(args.paths),
            columns=Columns(user="user", item="item", time="none"),
        ),
    ),
)
