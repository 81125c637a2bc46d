"""The Triton kernel that counts the scores above each query's target without storing scores.

A score is the sum of three fp16 products on tensor cores. `score_error` bounds its error. Pairs whose scores
are within the bound of the target's are listed, and the caller computes their exact scores.
"""

from typing import NamedTuple

import torch
from torch import Tensor

from longplay.distributed.table.triton_kernels import kernels, rows_at_once
from longplay.native.triton_runtime import power_of_two

ROWS_PER_PROGRAM = 1 << 13  # rows that one program counts
NEAR_CAPACITY = 1 << 23  # undecided pairs of one launch, 64 MiB
_HOPPER_SHARED_BYTES = 232_448
_SPARE_SHARED_BYTES = 4096  # for reductions
_FAR = 2.0**100  # above every scaled score


class Tile(NamedTuple):
    """The block of scores that a program computes at a time, and how Triton compiles it."""

    queries: int
    rows: int
    num_warps: int = 4
    num_stages: int = 3
    maxnreg: int | None = None

    def shared_bytes(self, padded: int) -> int:
        """Return the shared memory for rows of `padded` elements: the queries, and rows of each stage."""
        return 4 * padded * (self.queries + self.rows * self.num_stages) + _SPARE_SHARED_BYTES

    def options(self) -> dict[str, int | None]:
        """Return the options of the compiler."""
        return {"num_warps": self.num_warps, "num_stages": self.num_stages, "maxnreg": self.maxnreg}


TILES = (Tile(128, 64, num_warps=8), Tile(64, 64), Tile(64, 64, num_stages=2), Tile(64, 16, num_stages=1))


class SplitRows(NamedTuple):
    """fp32 rows times `scale`, as the sum of two fp16 tensors.

    Attributes:
        high, low: (n, P) fp16. The added columns are 0.
        norms: (n,) fp32, upper bounds of the scaled rows' norms, see `score_error`.
        scale: () fp32, a power of two.
    """

    high: Tensor
    low: Tensor
    norms: Tensor
    scale: Tensor


def choose_tile(width: int, device: torch.device) -> Tile:
    """Return the first of TILES that fits the shared memory of `device`.

    Raises:
        ValueError: no tile fits.
    """
    limit = _HOPPER_SHARED_BYTES
    if device.type == "cuda":
        limit = torch.cuda.get_device_properties(device).shared_memory_per_block_optin
    for tile in TILES:
        if tile.shared_bytes(padded_width(width)) <= limit:
            return tile
    raise ValueError(f"rows of width {width} do not fit the {limit:,} bytes of shared memory of {device}")


def padded_width(width: int) -> int:
    """Return the smallest power of two that is at least `width` and that tensor cores accept."""
    return max(16, power_of_two(width))


def count_above(
    queries: Tensor, rows: Tensor, score: Tensor, tile: Tile | None = None
) -> tuple[Tensor, Tensor, Tensor] | None:
    """Count the rows that surely score above each query's target, and list the undecided pairs.

    Args:
        queries: (Q, D) and rows: (R, D) fp32, contiguous; R is below 2^31.
        score: (Q,) float64, the targets' scores.
        tile: None = `choose_tile`.
    Returns:
        (Q,) int64 counts, and the query (P,) and row (P,) of each undecided pair; None if there are more than
        NEAR_CAPACITY such pairs.
    """
    num_queries, width = queries.shape
    tile = tile or choose_tile(width, queries.device)
    split = split_rows(queries, tile.queries)
    others = split_rows(rows, tile.rows, fill=torch.nan)  # NaN scores are neither counted nor listed
    targets = torch.full_like(split.norms, _FAR)
    scaled = score * split.scale.double() * others.scale.double()
    targets[:num_queries] = scaled.clamp(-_FAR, _FAR)
    counts = torch.zeros(split.norms.shape[0], dtype=torch.int32, device=queries.device)
    near = torch.empty(NEAR_CAPACITY, 2, dtype=torch.int32, device=queries.device)
    num_near = torch.zeros(1, dtype=torch.int64, device=queries.device)
    num_rows = others.norms.shape[0]
    grid = (split.norms.shape[0] // tile.queries, -(-num_rows // ROWS_PER_PROGRAM))
    kernels().count_above[grid](
        split.high,
        split.low,
        others.high,
        others.low,
        targets,
        targets.abs() * 2.0**-22,
        score_error(width) * split.norms,
        others.norms.view(-1, tile.rows).amax(1),
        counts,
        near,
        num_near,
        num_rows,
        PADDED=padded_width(width),
        QUERIES=tile.queries,
        ROWS=tile.rows,
        ROWS_PER_PROGRAM=ROWS_PER_PROGRAM,
        CAPACITY=NEAR_CAPACITY,
        **tile.options(),
    )
    found = int(num_near)
    if found > NEAR_CAPACITY:
        return None
    query, row = near[:found].long().unbind(1)
    return counts[:num_queries].long(), query, row


def score_error(width: int) -> float:
    """Return a bound on |score - exact| / (norm of the query * norm of the row), norms as in `SplitRows`.

    Let u = 2^-11, half the spacing of fp16 numbers near 1. The parts of x are fp16(x) and fp16(x - fp16(x)),
    with a remainder of at most u^2 |x|, or of 2^-25 where fp16 is subnormal. The second part is at most about
    u |x|. The score omits the product of the second parts and those with a remainder, in all
    3 u^2 |q| |r|. With n elements, the norms contain sqrt(n) / 8 more, which covers the subnormal numbers.

    Products of fp16 numbers are exact in fp32. Tensor cores may truncate: in a sum of k products and the
    accumulator, with k of at least 4, each term and the result lose up to 2^-23 of the largest sum, which is
    at most |q| |r|. That is (n + 2 n / k) 2^-23 <= 1.5 n 2^-23 = 0.75 n u^2. The two smaller products are
    summed first and add 2 u of that. The bound returned is larger to cover the rounding of norms and bounds.
    The rounding of a target's score to fp32 has its own margin in `count_above`.

    Source: Fasi, Higham, Mikaitis, Pranesh, Numerical behavior of NVIDIA tensor cores, 2021.
    """
    return (4 + 0.8 * padded_width(width)) * 2.0**-22


def split_rows(values: Tensor, multiple: int, fill: float = 0.0) -> SplitRows:
    """Split rows (n, D), and add rows of `fill` until their number is a multiple of `multiple`.

    The largest element becomes at least 2^13, so that few parts are subnormal in fp16.
    """
    num_rows, width = values.shape
    padded, total = padded_width(width), -(-num_rows // multiple) * multiple
    least, most = values.aminmax()
    exponent = (14 - torch.maximum(-least, most).frexp().exponent).clamp(-126, 126)
    scale = ((exponent + 127) << 23).view(torch.float32)
    high, low = torch.empty(2, total, padded, dtype=torch.float16, device=values.device)
    norms = torch.empty(total, dtype=torch.float32, device=values.device)
    at_once = min(multiple, rows_at_once(padded))
    sizes = {"WIDTH": width, "PADDED": padded, "ROWS": at_once}
    kernels().split_rows[(total // at_once,)](values, scale, high, low, norms, num_rows, fill, **sizes)
    norms = norms * (1 + padded * 2.0**-22) + padded**0.5 / 8
    return SplitRows(high, low, norms, scale)
