"""Write the item table of a checkpoint in the order of item ids, with bounded memory."""

from collections.abc import Iterator
from pathlib import Path

import torch
from torch import Tensor

from longplay.common.tensor_file import TensorBlocks, WrittenFile, write_tensors
from longplay.distributed.checkpoints.checkpoint import Checkpoint, open_table_file, table_files
from longplay.distributed.runtime.errors import CheckpointError
from longplay.distributed.table.row_order import RowOrder
from longplay.serving.export_format import TABLE_TENSOR

_BLOCK_BYTES = 1 << 30
_READ_ROWS = 1 << 17


def write_table(file: Path, checkpoint: Checkpoint, block_bytes: int = _BLOCK_BYTES) -> WrittenFile:
    """Write the item table in the order of item ids; row 0, the padding, is zeros.

    A checkpoint stores rows in the order of row positions, which scatters neighboring items. One sequential
    pass over the checkpoint collects one block of items, so that neither file is accessed at random.

    Args:
        block_bytes: size of a block, which is held in memory.

    Raises:
        CheckpointError: the checkpoint lacks rows, or rows are not finite.
    """
    num_items, width = int(checkpoint.state["num_items"]), int(checkpoint.state["width"])
    rows_per_block = max(1, block_bytes // (4 * width))

    def blocks() -> Iterator[Tensor]:
        yield torch.zeros(1, width)
        for first in range(1, num_items + 1, rows_per_block):
            block = collect_items(checkpoint, first, min(first + rows_per_block, num_items + 1))
            check_finite(block, checkpoint, "the item table")
            yield block

    table = TensorBlocks((num_items + 1, width), torch.float32, blocks())
    return write_tensors(file, {TABLE_TENSOR: table})


def check_finite(weights: Tensor, checkpoint: Checkpoint, name: str) -> None:
    """Check that no weight is NaN or infinite.

    Raises:
        CheckpointError: one is.
    """
    if not weights.isfinite().all():
        raise CheckpointError(f"{checkpoint.path}: {name} is not finite; give another checkpoint")


def collect_items(checkpoint: Checkpoint, first: int, last: int) -> Tensor:
    """Return the rows (last - first, D) fp32 of the items first..last - 1.

    Raises:
        CheckpointError: the checkpoint lacks some of them.
    """
    order = RowOrder(int(checkpoint.state["num_items"]))
    block = torch.empty(last - first, int(checkpoint.state["width"]))
    filled = 0
    for start, rows in rows_by_position(checkpoint):
        items = order.items(torch.arange(start, start + rows.shape[0]))
        here = ((items >= first) & (items < last)).nonzero().squeeze(1)
        block[items[here] - first] = rows[here]
        filled += len(here)
    if filled != last - first:
        raise CheckpointError(f"{checkpoint.path}: lacks {last - first - filled} rows of the item table")
    return block


def rows_by_position(checkpoint: Checkpoint) -> Iterator[tuple[int, Tensor]]:
    """Yield the table's weights in order, as (first row position, rows (n, D) fp32) with n bounded."""
    width = int(checkpoint.state["width"])
    for file, start, stop in table_files(checkpoint):
        with open_table_file(file, stop - start) as tensors:
            for at in range(start, stop, _READ_ROWS):
                rows = torch.empty(min(_READ_ROWS, stop - at), width)
                tensors.read_rows("weight", at - start, rows)
                yield at, rows
