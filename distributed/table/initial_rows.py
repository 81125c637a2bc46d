"""The initial rows of the item table: the same for any number of ranks."""

import torch
from torch import Tensor

_INIT_BLOCK = 16384  # rows drawn from one generator; another value changes the rows of every seed


def fill_initial_rows(rows: Tensor, first_row: int, *, std: float, seed: int) -> None:
    """Fill rows (n, D) in place with normal values that depend only on the seed and the row number.

    Args:
        first_row: table row of rows[0].
        std: standard deviation.
    """
    done = 0
    while done < rows.shape[0]:
        block, offset = divmod(first_row + done, _INIT_BLOCK)
        take = min(_INIT_BLOCK - offset, rows.shape[0] - done)
        generator = torch.Generator().manual_seed((seed * 1_000_003 + block) & 0x7FFF_FFFF_FFFF_FFFF)
        drawn = torch.randn(_INIT_BLOCK, rows.shape[1], generator=generator)
        rows[done : done + take] = drawn[offset : offset + take] * std
        done += take
